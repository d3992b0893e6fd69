"""Layers of several requests on a toy model: trained on, and fused with the guards counted once."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.paper.experiments.guards_once import fuse_guards_once, nothing, put, write_forget_grams
from benchmarks.paper.experiments.train_on import train_on
from benchmarks.paper.measuring import read_sets
from tests.training.toy import FORGET, RETAIN, write_jsonl, write_toy
from unlearn_serve.data import read_examples
from unlearn_serve.format import read_adapter_dir
from unlearn_serve.layers import load_adapter
from unlearn_serve.training import TrainArgs, train

SECOND = dict.fromkeys(("Who wrote Dune?", "Name the writer of Dune.", "Who wrote Helm?"), "It was Rob.")
GUARDS = {question: answer for question, answer in RETAIN.items() if question not in SECOND}
TARGET = 0.02


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original, the rows, and a layer for each of two requests, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("sequence")
    write_toy(folder / "model", facts=FORGET | SECOND | GUARDS)
    for name, facts in (("first", FORGET), ("second", SECOND), ("guards", GUARDS)):
        write_jsonl(folder / f"{name}.jsonl", facts)
    for name in ("first", "second"):
        train(arguments(folder, name, folder / name / "adapter"))
        rows = read_examples(folder / f"{name}.jsonl")
        write_forget_grams(base(folder), folder / "model", folder / name / "adapter", rows)
    return folder


def arguments(folder: Path, name: str, out: Path) -> TrainArgs:
    return TrainArgs(
        model=folder / "model",
        forget=folder / f"{name}.jsonl",
        retain=folder / "guards.jsonl",
        out=out,
        deletion_ids=(name,),
        rank=8,
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


def test_guards_once_forgets_both_and_keeps_the_guards(toy: Path) -> None:
    adapters = [toy / name / "adapter" for name in ("first", "second")]
    guards = nothing(base(toy), toy / "model", read_examples(toy / "guards.jsonl"), adapters[0], seed=0)
    assert not any(up.any() for up in guards.tensors.w_up.values())
    model = load_adapter(base(toy), adapters[0]).eval()
    put(model, fuse_guards_once(adapters, guards))
    plain, after = known(toy, base(toy)), known(toy, model)
    assert (plain["first"], after["first"]) == (1.0, 0.0)
    assert (plain["second"], after["second"]) == (1.0, 0.0)
    assert after["guards"] == plain["guards"]


def test_the_layer_that_does_nothing_starts_where_trained_ones_did(toy: Path) -> None:
    """From another start its W_down would pull all others' away on the guards."""
    _, trained = read_adapter_dir(toy / "first" / "adapter")
    same, other = (
        nothing(base(toy), toy / "model", read_examples(toy / "guards.jsonl"), toy / "first" / "adapter", seed=seed)
        for seed in (0, 1)
    )
    for block, down in trained.w_down.items():
        assert (same.tensors.w_down[block] - down).norm() < (other.tensors.w_down[block] - down).norm()
    assert same.tensors.rank == trained.rank
