"""Servers under test: started from here, several alive at once, each idle unless it is its turn."""

import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.processes import BenchmarkError, Measured, clean_environment

NAME = "base"
"""The served model's name, in every server."""

START_SECONDS = 600.0
IDLE_CORES = 0.05
"""A server that keeps more of a core busy while it should idle would be part of every other one's figure."""

_STARTS_AT_ONCE = 2
"""A start compiles, mostly on one core."""

COMMON_FLAGS = (
    *("--served-model-name", NAME),
    *("--dtype", "bfloat16"),
    *("--max-model-len", "1024"),
    *("--max-num-seqs", "16"),
    # Room for 16 requests of the largest load and as much again; several servers share the machine's memory.
    *("--kv-cache-memory-bytes", str(512 * 2**20)),
    *("--host", "127.0.0.1"),
    "--disable-uvicorn-access-log",
)


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """How to start one server."""

    name: str
    arguments: Callable[[], Sequence[str]]
    """All after `python -m`; called at start, since inputs may have to be made first."""
    environment: Mapping[str, str] = field(default_factory=dict)


class Server(Measured):
    """A server that is being started; `wait_ready` before anything is asked of it."""

    def __init__(self, spec: ServerSpec, *, logs: Path, port: int | None = None) -> None:
        self.spec = spec
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin_key = secrets.token_urlsafe(16)
        self.started = time.monotonic()
        super().__init__(
            spec.name,
            [sys.executable, "-m", *spec.arguments(), *COMMON_FLAGS, "--port", str(self.port)],
            log=logs / f"{spec.name}.log",
            environment=clean_environment(UNLEARN_ADMIN_KEY=self.admin_key, **spec.environment),
        )

    def wait_ready(self) -> float:
        """Wait until the server answers; returns the seconds since it was started."""
        while time.monotonic() < self.started + START_SECONDS:
            self.require_alive()
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return time.monotonic() - self.started
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        raise BenchmarkError(f"{self.name}: not ready after {START_SECONDS:.0f} s; see {self.log}")

    def require_idle(self, seconds: float = 3.0) -> float:
        """Return the cores that the server, asked nothing, keeps busy; BenchmarkError where that disturbs others."""
        time.sleep(2.0)  # vLLM's processes spin for a second after the last request
        if (busy := self.busy_fraction(seconds)) > IDLE_CORES:
            raise BenchmarkError(f"{self.name}: expected an idle server to use no core, got {busy:.2f} cores busy")
        return busy

    def admin(self, path: str) -> dict[str, Any]:
        """GET /v1/unlearning/`path`."""
        response = httpx.get(
            f"{self.url}/v1/unlearning/{path}", headers={"X-Unlearn-Admin-Key": self.admin_key}, timeout=60
        )
        answer: dict[str, Any] = response.raise_for_status().json()
        return answer

    def wait_live(self, release: str) -> None:
        """Wait until `release` is live."""
        deadline = time.monotonic() + 60
        while self.admin("status")["live"]["release"] != release:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{self.name}: {release[:12]} was not live after 60 s; see {self.log}")
            time.sleep(0.05)


class Fleet:
    """Servers that are alive together. Use as a context manager: whatever happens, every one is ended."""

    def __init__(self, specs: Iterable[ServerSpec], *, logs: Path, say: Callable[[str], None]) -> None:
        self._specs = list(specs)
        self._logs = logs
        self._say = say
        self.servers: dict[str, Server] = {}
        self._ended = False
        self.failed: dict[str, str] = {}
        """Server name -> why it did not start."""

    def __enter__(self) -> "Fleet":
        starters = ThreadPoolExecutor(_STARTS_AT_ONCE)
        try:
            # Their arguments are made here, one after the other: they write inputs and move channels.
            made = [replace(spec, arguments=partial(list, spec.arguments())) for spec in self._specs]
            for started in [starters.submit(self._start, spec) for spec in made]:
                started.result()
        except BaseException:
            self.__exit__()
            raise
        finally:
            starters.shutdown(cancel_futures=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for server in list(self.servers.values()):
            server.stop()

    def _start(self, spec: ServerSpec) -> None:
        if self._ended:
            return
        self._say(f"starting {spec.name}")
        server = Server(spec, logs=self._logs)
        self.servers[spec.name] = server
        try:
            seconds = server.wait_ready()
            self._say(f"{spec.name} is ready after {seconds:.0f} s; idle, it uses {server.require_idle():.3f} cores")
        except BenchmarkError as problem:
            if self._ended:
                return
            self.failed[spec.name] = str(problem)
            self._say(f"FAILED {problem}")
            server.stop()
            del self.servers[spec.name]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
