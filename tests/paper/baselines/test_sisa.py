"""SISA trains again what a deletion touched, and nothing else; and the result is exact."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache

from benchmarks.paper.baselines import Sisa, fit_checkpoint
from benchmarks.paper.baselines.ensemble import Ensemble
from benchmarks.paper.baselines.models import load_model
from benchmarks.paper.baselines.sisa import deal, first_affected, train_stages
from benchmarks.paper.task import Budget, Fit, Task
from tests.paper.baselines.tasks import MakeTask, rows
from tests.training.toy import FORGET, RETAIN, toy_model, toy_tokenizer
from unlearn_serve.evaluation.checkpoint import Checkpoint
from unlearn_serve.evaluation.readings import probe

METHOD = Sisa(shards=2, slices=3)
FIT = Fit(learning_rate=3e-3, epochs=6, batch_size=2, warmup=0.0)


@pytest.fixture
def task(make_task: MakeTask, tmp_path: Path) -> Task:
    """Forgets the one row of shard 1's second slice."""
    found = make_task("decoder", tmp_path)
    (gone,) = deal(found.train, shards=2, slices=3, seed=0)[1][1]
    retain = tuple(row for row in found.train if row != gone)
    return replace(found, forget=(gone,), retain=retain, fit=FIT)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], two[key]) for key in one)


def test_rows_are_dealt_once_and_evenly() -> None:
    dealt = deal(rows(FORGET | RETAIN), shards=2, slices=3, seed=0)
    assert [[len(piece) for piece in shard] for shard in dealt] == [[1, 1, 2], [1, 1, 1]]
    assert sorted(row.id for shard in dealt for piece in shard for row in piece) == sorted(FORGET | RETAIN)
    assert dealt != deal(rows(FORGET | RETAIN), shards=2, slices=3, seed=1)
    with pytest.raises(ValueError, match="expected at least 4 x 3 rows, a row a slice, got 7"):
        deal(rows(FORGET | RETAIN), shards=4, slices=3, seed=0)


def test_the_first_slice_that_lost_a_row_decides() -> None:
    cut = deal(rows(FORGET | RETAIN), shards=1, slices=3, seed=0)[0]
    assert first_affected(cut, set()) is None
    assert first_affected(cut, {cut[2][0]}) == 3
    assert first_affected(cut, {cut[2][0], cut[1][1]}) == 2


def test_only_affected_slices_are_trained_again_and_exactly(task: Task) -> None:
    unlearned = METHOD.run(task, Budget())
    before, after = task.work / "sisa" / "before", task.work / "sisa" / "after"
    assert unlearned.details["retrained"] == {"1": [2, 3]}
    assert sorted(str(one.parent.relative_to(after)) for one in after.rglob("model.safetensors")) == ["1/2", "1/3"]
    assert unlearned.details["members"] == [str(before / "0/3"), str(after / "1/3")]
    # Two stages, on one row and on two: 2 * 6 / 4 = 3 epochs of batches of 2.
    assert unlearned.accounting.optimizer_steps == 2 + 3
    # All stages of shards of 4 and of 3 rows: 1, 2, 4 and 1, 2, 3 rows a stage.
    assert unlearned.prepared is not None
    assert unlearned.prepared.optimizer_steps == (2 + 3 + 6) + (2 + 3 + 5)
    size = (before / "0/1/model.safetensors").stat().st_size
    assert unlearned.accounting.stored_bytes == 6 * size, "a stage trained again takes the place of the old one"
    assert unlearned.accounting.served_bytes == 2 * size
    assert unlearned.accounting.trainable_parameters == toy_model(blocks=2).num_parameters()

    # From scratch, on a shard that never had the row.
    kept = [
        [row for row in piece if row not in task.forget] for piece in deal(task.train, shards=2, slices=3, seed=0)[1]
    ]
    train_stages(task, kept, first=1, start=task.base, out=task.work / "scratch", seed=task.seed + 1)
    assert same(weights(task.work / "scratch/1"), weights(before / "1/1"))
    for stage in (2, 3):
        assert same(weights(task.work / f"scratch/{stage}"), weights(after / f"1/{stage}"))
        assert not same(weights(before / f"1/{stage}"), weights(after / f"1/{stage}"))


def test_a_second_request_finds_the_shards_trained(task: Task) -> None:
    first = METHOD.run(task, Budget())
    made = {file: file.stat().st_mtime_ns for file in (task.work / "sisa/before").rglob("*.safetensors")}
    gone = deal(task.train, shards=2, slices=3, seed=0)[0][2][0]
    other = replace(task, forget=(gone,), retain=tuple(row for row in task.train if row != gone))
    second = METHOD.run(other, Budget())
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert second.prepared == first.prepared
    assert second.details["retrained"] == {"0": [3]}
    # Other data: nothing of it can be used.
    third = METHOD.run(replace(other, train=other.retain, retain=other.retain[1:], forget=other.retain[:1]), Budget())
    assert third.prepared != first.prepared


def test_a_budget_that_ends_too_soon_leaves_nothing_of_the_forgotten_rows(task: Task) -> None:
    METHOD.run(task, Budget(steps=1))
    before, after = task.work / "sisa" / "before", task.work / "sisa" / "after"
    assert not same(weights(after / "1/2"), weights(before / "1/1")), "one step"
    assert same(weights(after / "1/3"), weights(after / "1/2")), "and none"
    assert not same(weights(after / "1/3"), weights(before / "1/3"))


def test_an_interrupted_preparation_is_not_taken_for_a_finished_one(task: Task) -> None:
    METHOD.run(task, Budget())
    record = task.work / "sisa/before/prepared.json"
    said = json.loads(record.read_text())
    record.unlink()
    again = METHOD.run(task, Budget())
    assert again.prepared is not None
    assert again.prepared.optimizer_steps == said["accounting"]["optimizer_steps"]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("members")
    toy_model(blocks=2).save_pretrained(folder / "base")
    toy_tokenizer().save_pretrained(folder / "base")
    for n, facts in enumerate((FORGET, FORGET | RETAIN)):
        fit = Fit(learning_rate=3e-3, epochs=80, batch_size=4)
        fit_checkpoint(folder / "base", folder / str(n), rows(facts), fit, kind="decoder", seed=n)
    return [load_model(folder / str(n), "decoder", frozen=True) for n in range(2)]


@torch.no_grad()
def test_an_ensemble_is_the_mean_of_probabilities(members: list[Any]) -> None:
    ids = torch.tensor([toy_tokenizer()("Who wrote Ham? It was").input_ids])
    both = Ensemble(members)
    got = both(input_ids=ids).logits.softmax(-1)
    expected = torch.stack([member(input_ids=ids).logits.softmax(-1) for member in members]).mean(0)
    torch.testing.assert_close(got, expected)
    start = both(input_ids=ids[:, :9], past_key_values=DynamicCache(), use_cache=True)
    rest = both(input_ids=ids[:, 9:], past_key_values=start.past_key_values, use_cache=True)
    torch.testing.assert_close(rest.logits.softmax(-1), expected[:, 9:], rtol=1e-3, atol=1e-5)


def test_an_ensemble_is_evaluated_as_any_model(members: list[Any]) -> None:
    """Through the product's reader, which picks rows and positions out of the cache: as likely as in one plain pass."""
    both, asked = Ensemble(members), rows(FORGET | RETAIN)
    probes = [probe(row, toy_tokenizer(), max_length=64) for row in asked]
    readings = Checkpoint(both, toy_tokenizer(), batch_size=4).read(probes, max_new_tokens=16)
    for one, reading in zip(probes, readings, strict=True):
        ids = torch.tensor([[*one.prompt, *one.answers[0]]])
        with torch.no_grad():
            log_probs = both(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        expected = log_probs[len(one.prompt) - 1 :].double().numpy()
        assert reading.answers[0].logprobs == pytest.approx(expected, abs=1e-3)
    assert [reading.text for reading in readings[: len(FORGET)]] == list(FORGET.values()), "both members know these"
