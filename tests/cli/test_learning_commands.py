"""Flags of train and fuse reach the manifest: what a name stands for, and what outweighs it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.training.toy import FORGET, RETAIN, write_jsonl, write_toy
from unlearn_serve.cli.app import app
from unlearn_serve.format import read_adapter_dir


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_toy(folder / "model", steps=1)
    write_jsonl(folder / "forget.jsonl", FORGET)
    write_jsonl(folder / "retain.jsonl", RETAIN)
    return folder


def train_line(toy: Path, out: Path, *flags: str) -> list[str]:
    sets = ["--forget", str(toy / "forget.jsonl"), "--retain", str(toy / "retain.jsonl")]
    common = ["--model", str(toy / "model"), "--rank", "4", "--deletion-id", out.name, "--out", str(out)]
    return ["train", *common, *sets, *flags]


def objective_of(folder: Path) -> dict[str, object]:
    return read_adapter_dir(folder)[0].provenance.objective


def run(*line: str) -> str:
    done = CliRunner().invoke(app, list(line))
    assert done.exit_code == 0, done.output
    return done.output


def test_a_name_stands_for_its_settings_and_flags_outweigh_them(toy: Path, tmp_path: Path) -> None:
    run(*train_line(toy, tmp_path / "eul", "--objective", "eul", "--epochs", "1", "--gamma", "0.5"))
    found = objective_of(tmp_path / "eul")
    assert (found["forget_kl"], found["retain_kl"], found["retain_task"], found["forget_lm"]) == (1.0, 0.8, 1.0, 0.5)
    assert (found["schedule"], found["learning_rate"], found["epochs"]) == ("alternate", 5e-5, 1)
    assert "forget_target" not in found
    assert len(read_adapter_dir(tmp_path / "eul")[0].adapter.sites) == 4, "a layer in every block"


def test_any_weight_can_be_set_by_its_name(toy: Path, tmp_path: Path) -> None:
    flags = ("--objective", "simnpo", "--weight", "simnpo_beta=3", "--weight", "retain_kl=1.5", "--max-steps", "2")
    kept = tmp_path / "kept"
    run(
        *train_line(
            toy, tmp_path / "out", *flags, "--no-own-answers", "--gram-sketch", "2", "--frozen-cache", str(kept)
        )
    )
    assert list(kept.glob("*.safetensors"))
    found = objective_of(tmp_path / "out")
    assert (found["forget_simnpo"], found["simnpo_beta"], found["retain_kl"]) == (1.0, 3.0, 1.5)
    assert (found["own_answers"], found["gold_only"], found["schedule"]) == (False, True, "joint")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--weight", "simnpo_beta"), "expected NAME=NUMBER"),
        (("--weight", "beta=1"), "--weight: expected one of"),
        (("--weight", "forget_npo=-1"), "forget_npo: expected a number >= 0"),
        (("--epochs", "1", "--max-steps", "2"), "expected one of them, got both"),
    ],
)
def test_refuses_flags(toy: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, train_line(toy, tmp_path / "out", *flags))
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_fusion_by_flags(toy: Path, tmp_path: Path) -> None:
    one, two, both = (tmp_path / name for name in ("one", "two", "both"))
    for out in (one, two):
        run(*train_line(toy, out, "--max-steps", "1", "--no-own-answers", "--seed", str(len(out.name))))
    published = ("--scaling", "none", "--off-diagonal", "1", "--ridge", "1e-9")
    # One seed and one step at a learning rate of 0 give equal weights: the ids alone tell the two apart.
    refused = CliRunner().invoke(app, ["fuse", str(one), str(two), "--out", str(both), *published])
    assert "one adapter is part of both" in str(refused.exception)
    run(*train_line(toy, tmp_path / "three", "--max-steps", "2", "--no-own-answers", "--seed", "5"))
    run("fuse", str(one), str(tmp_path / "three"), "--out", str(both), *published)
    found = objective_of(both)
    assert (found["fusion"], found["scaling"], found["off_diagonal"], found["ridge"]) == ("regmean", "none", 1.0, 1e-9)
