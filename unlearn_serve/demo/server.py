"""The demo's server: `unlearn-serve serve` as a child process, watched over HTTP and by its process tree."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]  # ships no types

from unlearn_serve.demo.progress import progress_bars
from unlearn_serve.errors import ServingError

CHANNEL = "production"
START_SECONDS = 600
TYPICAL_START_SECONDS = 30
SWAP_SECONDS = 60
"""A channel move that is not live after so long counts as failed; it takes about a second."""

VLLM_FLAGS = (
    *("--served-model-name", "demo"),
    *("--max-model-len", "1024"),
    *("--max-num-seqs", "16"),
    # Compiling takes a minute that a demo of ten does not have; tests cover the compiled model.
    "--enforce-eager",
)
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Trainer and server share the machine's cores: one thread each, bound to none, and waiting threads sleep. A worker
    # bound to a core, as vLLM has it, was seen to keep other processes off that core for minutes.
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class Server:
    """A server on a free port of 127.0.0.1."""

    def __init__(self, *, model: Path, store: Path, out: Path) -> None:
        from unlearn_serve.bf16 import engine_dtype  # loads torch, which knowledge.py must prepare for first

        self.log = out / "server.log"
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._admin_key = secrets.token_urlsafe(32)
        self._command = [
            *(sys.executable, "-m", "unlearn_serve.cli.app", "serve", str(model)),
            *("--store", str(store), "--channel", CHANNEL, "--allow-plain", "--state-dir", str(out / "state")),
            *("--host", "127.0.0.1", "--port", self.url.rsplit(":", 1)[1]),
            *VLLM_FLAGS,
            *("--dtype", engine_dtype()),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it is ready.

        Raises:
            ServingError: it ended, or was not ready in time.
        """
        environment = {**os.environ, **ENVIRONMENT, "UNLEARN_ADMIN_KEY": self._admin_key}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and every process it started."""
        if self._process is None:
            return
        tree = [*self._tree()]
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, alive = psutil.wait_procs(tree, timeout=5)
        for process in alive:
            process.kill()
        self._process = None

    def pids(self) -> list[int]:
        """Process ids of the server that matter: API server, engine and workers; no short-lived helpers."""
        workers = {worker["pid"] for worker in self.status()["workers"]}
        return sorted(
            process.pid
            for process in self._tree()
            if process.pid in workers or process.name().startswith("VLLM") or process.pid == self._running().pid
        )

    def status(self) -> dict[str, Any]:
        """GET /v1/unlearning/status."""
        return self._get("status")

    def swaps(self) -> list[dict[str, Any]]:
        """Every swap since the server started, oldest first."""
        return [event for event in self._get("history")["events"] if event["event"] == "swap"]

    def wait_for_generation(self, generation: int) -> dict[str, Any]:
        """Wait until the channel's `generation` is live; return the record of its swap.

        Raises:
            ServingError: it was refused, or did not go live in time.
        """
        deadline = time.monotonic() + SWAP_SECONDS
        while time.monotonic() < deadline:
            for swap in self.swaps():
                if swap["generation"] == generation and swap["ok"]:
                    return swap
            refused = self.status()["refused"]
            if refused:
                raise ServingError(f"the server refused generation {generation}: {refused}")
            time.sleep(0.1)
        raise ServingError(f"generation {generation} was not live after {SWAP_SECONDS} s; see {self.log}")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ServingError(f"the server is not running; its last words are in {self.log}")
        return self._process

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._running().pid)
            return [root, *root.children(recursive=True)]
        except (ServingError, psutil.NoSuchProcess):
            return []

    def _get(self, what: str) -> dict[str, Any]:
        response = httpx.get(
            f"{self.url}/v1/unlearning/{what}", headers={"X-Unlearn-Admin-Key": self._admin_key}, timeout=60
        )
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        with progress_bars() as progress:
            task = progress.add_task("starting the server (seconds, typical)", total=TYPICAL_START_SECONDS)
            while time.monotonic() < deadline:
                self._running()
                try:
                    if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                        progress.update(task, completed=TYPICAL_START_SECONDS)
                        return
                except httpx.TransportError:
                    pass
                time.sleep(1)
                progress.advance(task)
        raise ServingError(f"the server was not ready after {START_SECONDS} s; see {self.log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
