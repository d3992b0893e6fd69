"""The same run again: byte for byte, resumed after a kill, over two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.training.runs import answers, arguments, log_of
from unlearn_serve.training import train


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_same_seed_same_bytes_and_a_killed_run_resumes_to_them(toy: Path, tmp_path: Path, schedule: str) -> None:
    options = {"schedule": schedule, "max_steps": 9, "forget_target": None, "save_steps": 4, "own_answers": False}
    first = train(arguments(toy, tmp_path / "first", **options))
    second = train(arguments(toy, tmp_path / "second", **options))
    with pytest.raises(Killed):
        train(arguments(toy, tmp_path / "killed", **options), callbacks=[KillAt(6)])
    assert not (tmp_path / "killed" / "manifest.json").exists(), "an unfinished run must not look finished"
    resumed = train(arguments(toy, tmp_path / "killed", **options))
    other = train(arguments(toy, tmp_path / "other", **options, seed=1))

    def adapter(out: Path) -> bytes:
        return (out / "adapter_model.safetensors").read_bytes()

    assert adapter(first) == adapter(second)
    assert adapter(first) == adapter(resumed)
    assert adapter(first) != adapter(other)
    assert load_file(first / "grams.safetensors").keys() == load_file(resumed / "grams.safetensors").keys()
    assert [line["step"] for line in log_of(resumed)] == list(range(1, 10)), "no line twice, none missing"
    assert [line["loss"] for line in log_of(resumed)] == [line["loss"] for line in log_of(first)]


def test_two_processes_train_one_adapter(toy: Path, tmp_path: Path) -> None:
    """Under torchrun: each process sees examples of its own, both end with the same layers, one writes."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from unlearn_serve.training import TrainArgs, train\n"
        "toy, out = map(Path, sys.argv[1:])\n"
        "train(TrainArgs(model=toy / 'model', forget=toy / 'forget.jsonl', retain=toy / 'retain.jsonl', out=out,\n"
        "    deletion_ids=('x',), rank=8, learning_rate=1e-2, forget_batch=2, retain_batch=2, max_steps=60))\n"
    )
    command = [
        "--nproc-per-node=2",
        "--standalone",
        "--local-addr=127.0.0.1",
        str(script),
        str(toy),
        str(tmp_path / "out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert not any(answers(toy, "forget", tmp_path / "out"))
    steps = [line["step"] for line in log_of(tmp_path / "out") if "loss" in line]
    assert steps == list(range(1, len(steps) + 1)), "one process writes the log"
