"""Offline peers: libraries that apply adapters per sample and are no servers, as children that stay and wait idle."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.inputs import LORAS, RANK, Inputs
from benchmarks.load import LOADS, WARM_TOKENS, Cell
from benchmarks.processes import BenchmarkError, Measured, clean_environment
from unlearn_serve.demo.checkpoint import cache_root

SCRIPT = Path(__file__).with_name("offline_peer.py")
ADAPTERS_VENV = ("torch==2.13.0", "adapters==1.3.0")
"""The `adapters` library pins an older transformers than ours, so it gets an environment of its own."""


class Peer:
    """`offline_peer.py` with one library loaded; answers a cell at a time."""

    def __init__(self, library: str, inputs: Inputs, *, logs: Path) -> None:
        self.name = library
        self._inputs = inputs
        python = sys.executable if library == "peft" else str(_adapters_python(logs))
        loras = [str(path) for path in inputs.loras("down")] if library == "peft" else []
        self._measured = Measured(
            library,
            [python, str(SCRIPT), library, str(inputs.model), str(RANK), str(LORAS), *loras],
            log=logs / f"{library}.log",
            environment=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self._read()  # it says when it is ready
        except BaseException:
            self.stop()
            raise

    def run(self, cell: Cell, *, seed: int) -> dict[str, Any]:
        """Generate one cell's answers, batch by batch, and return the figures."""
        load = LOADS[cell.load]
        prompts = self._inputs.prompts(
            f"{cell.load}-{cell.batch}", tokens=load.input_tokens, count=load.requests[cell.batch], seed=seed
        )
        rows = self._inputs.token_ids(prompts)
        self._ask(rows[: cell.batch], cell.batch, WARM_TOKENS)
        self._measured.reset_peak()
        answer = self._ask(rows, cell.batch, load.output_tokens)
        return {**answer, "peak_memory_mib": self._measured.peak_mib()}

    def stop(self) -> None:
        """End the process."""
        self._measured.stop()

    def _ask(self, rows: list[list[int]], batch: int, output_tokens: int) -> dict[str, Any]:
        pipe = self._measured.process.stdin
        assert pipe is not None
        pipe.write(json.dumps({"prompts": rows, "batch": batch, "output_tokens": output_tokens}).encode() + b"\n")
        pipe.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        pipe = self._measured.process.stdout
        assert pipe is not None
        line = pipe.readline()
        if not line:
            self._measured.process.wait(30)
            self._measured.require_alive()
        answer: dict[str, Any] = json.loads(line)
        return answer


def _adapters_python(logs: Path) -> Path:
    """Return the interpreter of the `adapters` library's environment, which is made where it is missing."""
    folder = cache_root() / "peers" / "adapters-1.3.0"
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.exists():
        return python
    log = logs / "adapters-install.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *ADAPTERS_VENV],
            [str(python), "-c", "import adapters"],
        ):
            if subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode:
                raise BenchmarkError(f"the adapters library cannot be installed; see {log}")
    ready.touch()
    return python
