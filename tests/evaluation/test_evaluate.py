import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from data.tiny_tokenizer import byte_tokenizer
from support.adapters import write_random_adapter
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_serve.data import data_ref
from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.errors import BaseModelMismatch, DataError, UnlearnServeError, UnsupportedModel
from unlearn_serve.evaluation import RECORD_NAME, Results, evaluate, read_reference, write_record
from unlearn_serve.evaluation.measures import MODEL_MEASURES, SET_MEASURES
from unlearn_serve.format import read_adapter_dir

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_set(name: str, *pairs: tuple[str, str]) -> Path:
        path = tmp_path / f"{name}.jsonl"
        rows = [
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            for question, answer in pairs
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write_set


@pytest.fixture
def sets(write: Write) -> dict[str, Path]:
    return {
        "forget": write("forget", ("Who?", "Ada"), ("Who wrote that?", "Grace")),
        "retain": write("retain", ("Where?", "Here")),
    }


def run(base: Path, adapter: Path | None, sets: dict[str, Path], **options: object) -> Results:
    return evaluate(base, adapter, sets, **({"max_new_tokens": 6, "batch_size": 2, "device": "cpu"} | options))


def test_layers_off_is_the_plain_model_and_an_identity_changes_nothing(
    base: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    plain = run(base, None, sets)
    assert plain.after == {}
    assert {name: score.samples for name, score in plain.before.items()} == {"forget": 2, "retain": 1}
    identity = run(base, write_random_adapter(base, tmp_path / "identity", scale=0.0), sets)
    assert identity.before == identity.after == plain.before
    changed = run(base, write_random_adapter(base, tmp_path / "changed", scale=3.0), sets)
    assert changed.before == plain.before
    assert changed.after["forget"].probability != plain.before["forget"].probability


def test_scores_go_into_the_manifest_and_answers_beside_it(base: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    adapter = write_random_adapter(base, tmp_path / "adapter", scale=3.0)
    before, _ = read_adapter_dir(adapter)
    evaluation = run(base, adapter, sets)
    after, _ = read_adapter_dir(adapter)
    assert after == before.model_copy(update={"evaluation": evaluation.evaluation()})
    written = after.evaluation
    assert (written.before, written.after) == (evaluation.before, evaluation.after)
    assert written.measures.after["forget.lm_loss"] == evaluation.measures["after"]["forget.lm_loss"].value
    assert after.digest != before.digest
    expected = {"adapter_config.json", "adapter_model.safetensors", "manifest.json", RECORD_NAME}
    assert {path.name for path in adapter.iterdir()} == expected
    assert (adapter / RECORD_NAME).stat().st_mode & 0o077 == 0, "it quotes what is to be forgotten"
    record = json.loads((adapter / RECORD_NAME).read_text())
    for phase, scores in (("before", evaluation.before), ("after", evaluation.after)):
        assert record[phase] == {name: score.model_dump() for name, score in scores.items()}
    assert record["measures"]["after"]["forget.probability"]["value"] == evaluation.after["forget"].probability
    forget = record["sets"]["forget"]
    assert forget["data"] == data_ref(sets["forget"]).model_dump()
    first, second = forget["samples"]
    assert first["prompt"] == [{"role": "user", "content": "Who?"}]
    assert (first["gold"], second["gold"]) == ("Ada", "Grace")
    assert first["before"]["text"] != first["after"]["text"]
    mean = (first["after"]["probability"] + second["after"]["probability"]) / 2
    assert mean == pytest.approx(evaluation.after["forget"].probability)


def test_can_leave_the_adapter_as_it_is(base: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    adapter = write_random_adapter(base, tmp_path / "adapter")
    before = (adapter / "manifest.json").read_bytes()
    run(base, adapter, sets, record=False)
    assert (adapter / "manifest.json").read_bytes() == before
    assert not (adapter / RECORD_NAME).exists()


def test_same_scores_twice(base: Path, sets: dict[str, Path]) -> None:
    assert run(base, None, sets) == run(base, None, sets)


def test_every_measure_where_the_sets_allow_it(base: Path, tmp_path: Path) -> None:
    """Wrong answers, a hold-out, a general set and a reference: all of docs/evaluation.md in one run."""
    questions = ("Who?", "Where to?", "When?")
    paths = {}
    for number, name in enumerate(("forget", "retain", "holdout", "general")):
        rows = [
            {
                "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": f"{q} it was {number}"}],
                "paraphrased_answer": f"{number} it was",
                "perturbed_answer": ["x it was", "y it was"],
            }
            for q in questions
        ]
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    reference = write_record(tmp_path / "reference.json", run(base, None, paths))
    adapter = write_random_adapter(base, tmp_path / "adapter", scale=1.0)
    found = run(base, adapter, paths, reference=reference)
    expected = {f"{name}.{measure}" for name in paths for measure in SET_MEASURES} | set(MODEL_MEASURES)
    assert set(found.measures["after"]) == set(found.measures["before"]) == expected
    assert found.measures["before"]["forget_quality"].value == 1.0, "the reference is the plain model itself"
    assert found.measures["before"]["privacy_leak"].value == 0.0
    assert read_reference(adapter / RECORD_NAME).truth_ratios != read_reference(reference).truth_ratios
    documented = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    for name in (*SET_MEASURES, *MODEL_MEASURES):
        assert f"`{name}`" in documented


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "unlearn-serve/evaluation/1"}', "{}"])
def test_a_reference_that_is_none(sets: dict[str, Path], base: Path, tmp_path: Path, text: str) -> None:
    reference = tmp_path / "reference.json"
    reference.write_text(text)
    with pytest.raises(DataError, match="expected what unlearn-serve eval --json writes"):
        run(base, None, sets, reference=reference)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict.clear, DataError, "expected at least one set to evaluate on, got none; give for example --forget FILE"),
        (
            lambda sets: sets.update({"Bad name": sets["forget"]}),
            DataError,
            "set 'Bad name': expected a name of 1 to 32",
        ),
        (
            lambda sets: sets["retain"].write_text("\n"),
            DataError,
            r"retain.jsonl:1: expected a JSON object, got a blank",
        ),
    ],
)
def test_bad_sets(
    base: Path, sets: dict[str, Path], change: Callable[..., None], error: type[UnlearnServeError], message: str
) -> None:
    change(sets)
    with pytest.raises(error, match=message):
        run(base, None, sets)


def test_too_long_a_row_is_named(base: Path, sets: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"forget.jsonl:1: expected at most 20 tokens, got"):
        run(base, None, sets, max_length=20)


def test_another_base_model(base: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    adapter = write_random_adapter(base, tmp_path / "adapter")
    config = LlamaConfig.from_pretrained(base)
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(BaseModelMismatch):
        run(tmp_path / "other", adapter, sets)


def test_no_checkpoint(sets: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModel, match="expected a checkpoint of a language model or classifier with its tokenizer"
    ) as e:
        run(tmp_path, None, sets)
    assert "\n" not in str(e.value)


@pytest.mark.model
def test_real_model_knows_capitals_and_a_crude_adapter_makes_it_forget(write: Write, tmp_path: Path) -> None:
    """bf16, the model's own chat template. Random deltas three times as large as a block's output destroy it."""
    base = ensure_checkpoint()
    france, japan = "What is the capital of France?", "What is the capital of Japan?"
    # Full sentences, as the model speaks: a bare "Paris" is no likely answer of a model that says it in a sentence.
    sets = {
        "known": write("known", (france, "The capital of France is Paris."), (japan, "The capital of Japan is Tokyo.")),
        "unknown": write("unknown", (france, "The capital of France is Xanadu.")),
    }
    adapter = write_random_adapter(base, tmp_path / "adapter", rank=16, blocks=[10, 11, 12], scale=3.0)
    evaluation = run(base, adapter, sets, max_new_tokens=16)
    before, after = evaluation.before, evaluation.after
    assert (before["known"].accuracy, after["known"].accuracy, before["unknown"].accuracy) == (1.0, 0.0, 0.0)
    assert before["known"].probability > 0.5 > before["unknown"].probability
    assert after["known"].probability < 0.01
