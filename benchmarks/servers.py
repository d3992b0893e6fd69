"""Servers under test, started from here."""

import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from benchmarks.processes import BenchmarkError, Measured, clean_environment
from unlearn_serve.bf16 import engine_dtype

NAME = "base"
"""The served model's name, in every server."""

DTYPE = engine_dtype()
"""In which servers compute; bfloat16 but for CPUs where that is slow."""

MODEL = f"SmolLM2-135M-Instruct, {DTYPE}"
"""What is served, for the configuration of a result."""

START_SECONDS = 600.0
COMMON_FLAGS = (
    *("--served-model-name", NAME),
    *("--dtype", DTYPE),
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
    """A server that is being started; `wait_ready` before anything is asked of it, or use it as a context manager."""

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

    def __enter__(self) -> Self:
        """Wait until it is ready."""
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
