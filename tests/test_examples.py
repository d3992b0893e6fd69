"""The examples that people run."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_models import write_tiny_model

from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.store import Store

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.model
def test_train_and_promote(tmp_path: Path) -> None:
    """On random weights there is nothing to forget, but every step of the path is taken."""
    model = write_tiny_model(tmp_path / "model", vocab_size=49152, tokenizer=ensure_checkpoint())
    command = [sys.executable, EXAMPLES / "train_and_promote.py", "--model", model, "--work", tmp_path / "work"]
    done = subprocess.run([*command, "--max-steps", "2"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    entry = Store.open(str(tmp_path / "work" / "store")).channel("production")
    assert done.stdout.splitlines()[-1] == f"production generation 1 -> {entry.release}"
