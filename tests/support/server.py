"""Real servers as subprocesses: each in its own process group, on a free local port, ended by pid."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from support.engine import SETTINGS_ENVIRONMENT
from unlearn_serve.bf16 import engine_dtype

GENEROUS_SECONDS = 300.0
"""Limit of every wait: reached only where something is broken, however busy the machine is."""

POLLS_SECONDS = 2.0
"""Eight polls: in that time a follower has seen a promote and begun to stage, where workers are stopped and so idle."""

Result = TypeVar("Result")

CLI = str(Path(sys.executable).with_name("unlearn-serve"))
ADMIN_KEY = "admin-key-of-the-tests"
API_KEY = "inference-key-of-the-tests"
MODEL_NAME = "base"
SMALL_ENGINE = (
    *("--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16"),
    *("--served-model-name", MODEL_NAME, "--dtype", engine_dtype()),
)


def wait_until(look: Callable[[], Result | None], what: str, *, seconds: float = GENEROUS_SECONDS) -> Result:
    """Return the first truthy result of `look`, which is called again and again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:.0f} s in vain: {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_environment(**more: str) -> dict[str, str]:
    """The environment of a server: small, offline, and with no key inherited from the outside."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "UNLEARN_"))}
    return {**inherited, **SETTINGS_ENVIRONMENT, "VLLM_LOGGING_LEVEL": "INFO", **more}


@dataclass
class Server:
    """One server process group; its output, stdout and stderr together, goes to `log`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with every request of `client`."""

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=GENEROUS_SECONDS)

    def status(self) -> dict[str, Any]:
        with self.client() as client:
            return client.get("/v1/unlearning/status").raise_for_status().json()

    def answers_health(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def wait_ready(self) -> None:
        def ready_or_dead() -> bool:
            assert self.process.poll() is None, f"the server ended early:\n{self.output[-6000:]}"
            return self.answers_health()

        wait_until(ready_or_dead, "the server becomes ready")

    def wait_live(self, generation: int) -> dict[str, Any]:
        """Wait until `generation` is live; returns the status."""

        def live() -> dict[str, Any] | None:
            status = self.status()
            return status if status["live"]["generation"] == generation else None

        return wait_until(live, f"generation {generation} goes live")

    def sample(self, name: str, **labels: str) -> float:
        """The value of one sample of /metrics, 0 where it is not there yet."""
        with self.client() as client:
            text = client.get("/metrics").raise_for_status().text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(sample.value for sample in samples if (sample.name, sample.labels) == (name, labels))

    def tokens(self, release: str, generation: str) -> dict[str, float]:
        """What unlearn_tokens_total has of a release, by kind."""
        return {
            kind: self.sample("unlearn_tokens_total", release=release, generation=generation, kind=kind)
            for kind in ("prompt", "generated")
        }

    def stop(self) -> None:
        """End the whole group; safe to call again."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, how)
                self.process.wait(30)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def running(command: Sequence[str], *, log: Path, headers: dict[str, str], **environment: str) -> Iterator[Server]:
    """Run a server's command line on a free port; the group is ended on leaving, whatever happens."""
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=server_environment(**environment),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", log, headers)
    try:
        yield server
    finally:
        server.stop()


def serve_command(model: Path, store: Path | str, state: Path, *flags: str) -> list[str]:
    """The front door: `unlearn-serve serve`."""
    ours = ["--store", str(store), "--state-dir", str(state)]
    return [CLI, "serve", str(model), *ours, *SMALL_ENGINE, *flags]


def plain_vllm_command(model: Path, settings: dict[str, Any], *flags: str) -> list[str]:
    """The same through the plugin's entry points: vLLM's own command line."""
    from unlearn_serve.serving.models import WORKER_EXTENSION

    ours = ["--additional-config", json.dumps({"unlearn": settings}), "--worker-extension-cls", WORKER_EXTENSION]
    return [sys.executable, "-m", "unlearn_serve.serving.vllm_serve", str(model), *ours, *SMALL_ENGINE, *flags]


@dataclass
class Stream:
    """What came back on one streamed chat request."""

    release: str
    """The response header."""
    text: str
    finish_reason: str | None
    fingerprint: str | None
    completion_tokens: int


def stream_chat(
    server: Server,
    prompt: str,
    *,
    tokens: int,
    accepted: Callable[[], None] = lambda: None,
    begun: Callable[[], None] = lambda: None,
    model: str = MODEL_NAME,
) -> Stream:
    """Stream exactly `tokens` tokens; `accepted` is called when the headers are here, `begun` with the first text."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "model": model,
    }
    text, finish_reason, fingerprint, count = "", None, None, 0
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        accepted()
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk, chunk
            for choice in chunk["choices"]:
                if not text and choice["delta"].get("content"):
                    begun()
                text += choice["delta"].get("content") or ""
                finish_reason = choice["finish_reason"] or finish_reason
            fingerprint = chunk.get("system_fingerprint") or fingerprint
            count = (chunk.get("usage") or {}).get("completion_tokens", count)
    return Stream(response.headers["x-unlearn-release"], text, finish_reason, fingerprint, count)
