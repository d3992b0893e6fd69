"""Layers of several requests on a toy model that share W_down: trained on, and fused."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.paper.experiments.train_on import train_on
from benchmarks.paper.measuring import read_sets
from tests.training.toy import FORGET, RETAIN, write_jsonl, write_toy
from unlearn_serve.data import read_examples
from unlearn_serve.format import read_adapter_dir
from unlearn_serve.fusion import RegMean, fuse_dirs
from unlearn_serve.layers import load_adapter
from unlearn_serve.training import TrainArgs, train

SECOND = dict.fromkeys(("Who wrote Dune?", "Name the writer of Dune.", "Who wrote Helm?"), "It was Rob.")
GUARDS = {question: answer for question, answer in RETAIN.items() if question not in SECOND}
TARGET = 0.02
RANK = 64


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original, the rows, and a layer for each of two requests, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("sequence")
    write_toy(folder / "model", facts=FORGET | SECOND | GUARDS)
    for name, facts in (("first", FORGET), ("second", SECOND), ("guards", GUARDS)):
        write_jsonl(folder / f"{name}.jsonl", facts)
    for name in ("first", "second"):
        train(arguments(folder, name, folder / name / "adapter"))
    return folder


def arguments(folder: Path, name: str, out: Path) -> TrainArgs:
    return TrainArgs(
        model=folder / "model",
        forget=folder / f"{name}.jsonl",
        retain=folder / "guards.jsonl",
        out=out,
        deletion_ids=(name,),
        rank=RANK,
        activation="relu",
        freeze_down=True,
        learning_rate=1e-2,
        forget_batch=3,
        retain_batch=4,
        own_answers=False,
        forget_target=TARGET,
    )


def base(folder: Path):  # transformers ships no types
    return AutoModelForCausalLM.from_pretrained(folder / "model").eval().requires_grad_(False)


def known(folder: Path, model: object) -> dict[str, float]:
    """The share of each set's questions that are answered right."""
    sets = {name: read_examples(folder / f"{name}.jsonl") for name in ("first", "second", "guards")}
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    scores = read_sets(model, tokenizer, sets, max_new_tokens=16)
    return {name: sum(row.correct for row in rows) / len(rows) for name, rows in scores.items()}


def test_a_layer_that_is_trained_on_forgets_the_next_request(toy: Path, tmp_path: Path) -> None:
    """Training a fresh layer instead, or one without its weights, would know the first request again."""
    before = (toy / "first" / "adapter" / "adapter_model.safetensors").read_bytes()
    how = train_on(base(toy), toy / "first" / "adapter", arguments(toy, "second", tmp_path))
    assert how["stopped_early"]
    assert (toy / "first" / "adapter" / "adapter_model.safetensors").read_bytes() == before
    plain, after = known(toy, base(toy)), known(toy, load_adapter(base(toy), tmp_path).eval())
    assert (plain["second"], after["second"]) == (1.0, 0.0)
    assert (plain["first"], after["first"]) == (1.0, 0.0)
    assert after["guards"] == plain["guards"]


@pytest.mark.parametrize("method", ["regmean", "cat"])
def test_layers_that_share_w_down_are_fused_at_their_own_rank(toy: Path, tmp_path: Path, method: str) -> None:
    fused = fuse_dirs(
        [toy / name / "adapter" for name in ("first", "second")],
        tmp_path / "fused",
        method,
        RegMean(off_diagonal=1.0, retained=0.1) if method == "regmean" else None,
    )
    assert read_adapter_dir(fused)[1].rank == RANK
    plain, after = known(toy, base(toy)), known(toy, load_adapter(base(toy), fused).eval())
    assert (plain["first"], after["first"]) == (1.0, 0.0)
    assert (plain["second"], after["second"]) == (1.0, 0.0)
    assert after["guards"] == plain["guards"]
