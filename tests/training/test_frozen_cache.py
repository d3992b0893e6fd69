"""What is kept of the frozen model between runs: the same numbers without its passes, and nothing of forgotten rows."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.training.runs import arguments
from tests.training.toy import toy_model
from unlearn_serve.data import IGNORED, Encoded, read_examples
from unlearn_serve.errors import TrainingError
from unlearn_serve.format import fingerprint_base_model
from unlearn_serve.layers import add_adapter
from unlearn_serve.training import frozen, train
from unlearn_serve.training.examples import row_id
from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.frozen_cache import FrozenCache

GONE = Encoded([5, 6, 7, 8, 9, 10], [IGNORED] * 4 + [9, 10])
STAY = [Encoded([5, 6, 11, 12], [IGNORED] * 3 + [12]), Encoded([5, 6, 7, 13, 14], [IGNORED] * 3 + [13, 14])]
PLENTY, NOTHING = 2**30, 0


def cache_of(folder: Path, toy: Path, **other: object) -> FrozenCache:
    given = {"model": fingerprint_base_model(toy / "model"), "first_block": 2, "dtype": torch.float32, **other}
    return FrozenCache(folder, **given)


def filled(
    examples: Sequence[Encoded], cache: FrozenCache | None, cache_bytes: int = PLENTY
) -> tuple[FrozenOutputs, list[int]]:
    """The outputs of a run that forgets the first of `examples`, and how many tokens each of its passes had."""
    model = add_adapter(toy_model().eval(), rank=4, blocks=[2, 3])
    outputs = FrozenOutputs(
        model,
        examples,
        with_logits=range(1, len(examples)),
        first_block=2,
        row_tokens=64,
        cache_bytes=cache_bytes,
        cache=cache,
        rows={i: f"row{examples[i].input_ids[-1]}" for i in range(1, len(examples))},
    )
    passes: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, given, __: passes.append(given[0].shape[-1]))
    outputs.fill(model)
    outputs.model = model
    return outputs, passes


def test_a_later_run_gets_the_same_without_a_pass(toy: Path, tmp_path: Path) -> None:
    first, passes = filled([GONE, *STAY], cache_of(tmp_path, toy))
    # Forgets an example that shares more of its beginning with one that stays than the first run's did.
    other = Encoded([5, 6, 7, 13, 9, 8], [IGNORED] * 4 + [9, 8])
    second, fewer = filled([other, STAY[1]], cache_of(tmp_path, toy))
    plain, _ = filled([other, STAY[1]], None)
    assert (first.prefix, second.prefix) == (2, 3)
    assert passes[3:-1] == [6, 2 + 2 + 3], "after three that check packing, before one that checks replaying"
    assert fewer[3:-1] == [6], "the second time the example that goes alone"
    for members in ([0, 1], [1]):
        (row,), (same,) = second.rows(members), plain.rows(members)
        for name in ("student_logits", "teacher_logits"):
            with torch.no_grad():
                got, expected = getattr(second, name)(second.model, row), getattr(plain, name)(plain.model, same)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            second.answers(row, got).teacher_log_probs, plain.answers(same, got).teacher_log_probs, rtol=1e-5, atol=1e-6
        )


def test_what_memory_did_not_hold_then_is_computed_now(toy: Path, tmp_path: Path) -> None:
    filled([GONE, *STAY], cache_of(tmp_path, toy), NOTHING)
    outputs, _ = filled([GONE, *STAY], cache_of(tmp_path, toy))
    assert (outputs.replays, outputs.keeps_logits) == (True, True)
    _, fewer = filled([GONE, *STAY], cache_of(tmp_path, toy))
    assert fewer[3:-1] == [6], "and kept"


@pytest.mark.parametrize("other", [{"first_block": 3}, {"dtype": torch.bfloat16}])
def test_another_model_shares_nothing(toy: Path, tmp_path: Path, other: dict[str, object]) -> None:
    filled([GONE, *STAY], cache_of(tmp_path, toy))
    changed = cache_of(tmp_path, toy, **other)
    assert changed.read("row12", STAY[0], torch.device("cpu")) is None
    moved = fingerprint_base_model(toy / "model").model_copy(update={"weights_sha256": "0" * 64})
    assert cache_of(tmp_path, toy, model=moved).read("row12", STAY[0], torch.device("cpu")) is None
    assert cache_of(tmp_path, toy).read("row12", STAY[0], torch.device("cpu")) is not None


def test_an_unreadable_file_is_computed_anew(toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled([GONE, *STAY], cache_of(tmp_path, toy))
    broken = next(tmp_path.glob("row12-*"))
    broken.write_bytes(broken.read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        assert cache_of(tmp_path, toy).read("row12", STAY[0], torch.device("cpu")) is None
    assert str(broken) in caplog.text
    filled([GONE, *STAY], cache_of(tmp_path, toy))
    assert cache_of(tmp_path, toy).read("row12", STAY[0], torch.device("cpu")) is not None


def test_training_with_what_was_kept_gives_the_same_adapter(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recalled: list[bool] = []
    recall = FrozenOutputs._recalled
    monkeypatch.setattr(frozen.FrozenOutputs, "_recalled", lambda *args: recalled.append(recall(*args)) or recalled[-1])
    kept = tmp_path / "kept"
    options = {"own_answers": False, "max_steps": 3, "forget_target": None}
    runs = [train(arguments(toy, tmp_path / f"out{i}", frozen_cache=kept, **options)) for i in range(2)]
    examples = len(recalled) // 2
    assert not any(recalled[:examples])
    assert sum(recalled[examples:]) == len(list(kept.iterdir())) > 0
    weights = [(out / "adapter_model.safetensors").read_bytes() for out in runs]
    assert weights[0] == weights[1]


def test_nothing_of_a_forgotten_row_is_kept_and_what_was_is_deleted(toy: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    options = {"own_answers": False, "max_steps": 1, "forget_target": None, "frozen_cache": kept}
    retained = {row_id(one) for one in read_examples(toy / "retain.jsonl")}

    def rows() -> set[str]:
        return {path.name.partition("-")[0] for path in kept.iterdir()}

    train(arguments(toy, tmp_path / "first", **options))
    assert rows() == retained, "the beginnings of forgotten answers are retained by training, and not kept"
    assert {path.stat().st_mode & 0o777 for path in kept.iterdir()} == {0o600}

    lines = (toy / "retain.jsonl").read_text().splitlines()
    later = tmp_path / "later.jsonl"
    later.write_text(lines[0] + "\n")
    train(arguments(toy, tmp_path / "second", forget=later, **options))  # still in retain.jsonl as well
    assert rows() == retained - {row_id(one) for one in read_examples(later)}


def test_only_a_decoder_has_something_to_keep(toy: Path, tmp_path: Path) -> None:
    config = json.loads((toy / "model" / "config.json").read_text())
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (toy / "model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainingError, match="frozen_cache"):
        train(
            arguments(
                toy, tmp_path / "out", model=folder, own_answers=False, gold_only=False, frozen_cache=tmp_path / "kept"
            )
        )
