"""A publisher: a process of its own that publishes and moves the channel as it is told, so that it can be killed.

`python -m benchmarks.soak.publisher STORE CHANNEL` reads an order a line, as JSON, and answers each with a line.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.processes import BenchmarkError, Measured, clean_environment

ACTOR = "soak"


class Refused(BenchmarkError):
    """The publisher said why it could not."""


class Publisher:
    """The process, seen from the soak; started anew after it was killed. Use as a context manager."""

    def __init__(self, store: Path, channel: str, *, log: Path) -> None:
        self._command = [sys.executable, "-m", "benchmarks.soak.publisher", str(store), channel]
        self._log = log
        self._started: Measured | None = None

    def __enter__(self) -> "Publisher":
        self.process()
        return self

    def __exit__(self, *_: object) -> None:
        if self._started is not None:
            self._started.stop()

    def process(self) -> Measured:
        """Return the process, started if there is none."""
        if self._started is None or self._started.process.poll() is not None:
            self._started = Measured(
                "publisher",
                self._command,
                log=self._log,
                environment=clean_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self._answer(self._started)  # it is ready
        return self._started

    def publish(self, adapter: Path) -> str:
        """Publish an adapter; returns the release's digest."""
        release: str = self._ask(do="publish", adapter=str(adapter))["release"]
        return release

    def promote(self, release: str, *, allow_uncover: bool = False) -> dict[str, Any]:
        """Promote a release; returns the channel's new entry."""
        return self._ask(do="promote", release=release, allow_uncover=allow_uncover)

    def rollback(self) -> dict[str, Any]:
        """Roll the channel back; returns the channel's new entry."""
        return self._ask(do="rollback")

    def kill(self) -> None:
        """SIGKILL, at whatever it is doing; the next order starts a new one."""
        process = self.process().process
        process.kill()
        process.wait()

    def begin(self, **order: Any) -> None:
        """Give an order and wait for nothing: the process is about to be killed."""
        self._send(self.process(), order)

    def _ask(self, **order: Any) -> dict[str, Any]:
        process = self.process()
        self._send(process, order)
        answer = self._answer(process)
        if "error" in answer:
            raise Refused(f"publisher: {order['do']}: {answer['error']}")
        return answer

    def _send(self, process: Measured, order: dict[str, Any]) -> None:
        assert process.process.stdin is not None
        process.process.stdin.write(json.dumps(order).encode() + b"\n")
        process.process.stdin.flush()

    def _answer(self, process: Measured) -> dict[str, Any]:
        assert process.process.stdout is not None
        line = process.process.stdout.readline()
        if not line:
            raise BenchmarkError(f"the publisher answered nothing; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _obey(order: dict[str, Any], store: Any, channel: str) -> dict[str, Any]:
    if order["do"] == "publish":
        return {"release": store.publish(Path(order["adapter"]), actor=ACTOR)}
    if order["do"] == "promote":
        entry = store.promote(
            order["release"],
            channel,
            actor=ACTOR,
            allow_uncover=order["allow_uncover"],
            reason="an entry before cannot be read" if order["allow_uncover"] else "",
        )
    else:
        entry = store.rollback(channel, actor=ACTOR)
    return {"generation": entry.generation, "release": entry.release}


def main() -> None:
    """Obey until standard input ends."""
    from unlearn_serve.errors import UnlearnServeError
    from unlearn_serve.store import Store

    url, channel = sys.argv[1:]
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            answer = _obey(json.loads(line), Store.open(url), channel)
        except UnlearnServeError as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
