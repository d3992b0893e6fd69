"""A gate's file, its verdict, and what it says where it refuses."""

import hashlib
from pathlib import Path

import pytest

from unlearn_serve.errors import FormatError, GateError
from unlearn_serve.evaluation import Gate
from unlearn_serve.format import Evaluation, GateVerdict, Measures, Score

HEAD = "schema: unlearn-serve/gate/1\nthresholds:\n"
EVALUATION = Evaluation(
    before={"forget": Score(accuracy=1.0, probability=0.9, samples=16)},
    after={"forget": Score(accuracy=0.0, probability=0.01, samples=16)},
    measures=Measures(before={"retain.rouge_l": 0.9}, after={"retain.rouge_l": 0.8, "privacy_leak": -0.6}),
)


def gate(tmp_path: Path, text: str) -> Gate:
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    return Gate.read(path)


def test_what_holds_is_recorded_with_the_gates_digest(tmp_path: Path) -> None:
    text = f"{HEAD}  forget.probability: {{max: 0.05}}\n  forget.samples: {{min: 16}}\n"
    text += "  retain.rouge_l: {max_drop: 0.2}\n"
    judged = gate(tmp_path, text).judge(EVALUATION, what="adapter")
    assert judged.gate == GateVerdict(sha256=hashlib.sha256(text.encode()).hexdigest(), passed=True)
    assert judged.model_copy(update={"gate": None}) == EVALUATION


def test_each_missed_threshold_is_named_with_expected_and_got(tmp_path: Path) -> None:
    text = (
        f"{HEAD}  forget.accuracy: {{max: 0}}\n  forget.probability: {{max: 0.001}}\n"
        "  retain.rouge_l: {min: 0.85, max_drop: 0.05}\n  privacy_leak: {min: -0.2, max: 0.2}\n"
        "  mia_loss: {max: 0.6}\n  holdout.accuracy: {max_drop: 0.1}\n"
    )
    with pytest.raises(GateError) as refused:
        gate(tmp_path, text).judge(EVALUATION, what="adapter")
    missing = "got no such score (evaluate with the sets it needs)"
    for part in (
        "adapter: 6 thresholds of ",
        "gate.yaml missed: ",
        "forget.probability: expected at most 0.001, got 0.01",
        "retain.rouge_l: expected at least 0.85, got 0.8",
        "retain.rouge_l: expected a drop of at most 0.05, got 0.9 before and 0.8 after",
        "privacy_leak: expected at least -0.2, got -0.6",
        f"mia_loss: expected at most 0.6, {missing}",
        f"holdout.accuracy: expected a drop of at most 0.1, {missing} before",
    ):
        assert part in str(refused.value)
    assert "forget.accuracy" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("evaluation", [None, Evaluation(before=EVALUATION.before, after={})])
def test_without_an_evaluation_nothing_passes(tmp_path: Path, evaluation: Evaluation | None) -> None:
    found = gate(tmp_path, f"{HEAD}  forget.accuracy: {{max: 1}}\n")
    with pytest.raises(
        GateError, match=r"expected an evaluation for .*gate.yaml to judge, got none; run unlearn-serve"
    ):
        found.judge(evaluation, what="adapter")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "input should be a valid dictionary"),
        ("a: [", "expected YAML, got: while parsing"),
        ("!!python/object/apply:os.system [ls]", "expected YAML, got: could not determine a constructor"),
        ("schema: unlearn-serve/gate/2\nthresholds: {privacy_leak: {max: 1}}", "schema: input should be"),
        ("schema: unlearn-serve/gate/1\nthresholds: {}", "thresholds: dictionary should have at least 1 item"),
        (
            f"{HEAD}  privacy_leak: {{max: 1}}\n  privacy_leak: {{max: 2}}\n",
            "expected YAML, got: line 3: a key occurs twice",
        ),
        (
            f"{HEAD}  forget.probabilty: {{max: 1}}\n",
            "SET.MEASURE with one of accuracy, exact_match.*'forget.probabilty'",
        ),
        (f"{HEAD}  leak: {{max: 1}}\n", "expected one of mia_loss, .*, got 'leak'"),
        (f"{HEAD}  privacy_leak: {{maximum: 1}}\n", "thresholds.privacy_leak.maximum: unknown key"),
        (f"{HEAD}  privacy_leak: {{}}\n", "thresholds.privacy_leak: expected min, max or max_drop, got none"),
        (f"{HEAD}  privacy_leak: {{min: 1, max: 0}}\n", "expected min <= max, got 1 and 0"),
        (f"{HEAD}  privacy_leak: {{max: '1'}}\n", "thresholds.privacy_leak.max: input should be a valid number"),
        (f"{HEAD}  privacy_leak: {{max: .nan}}\n", "thresholds.privacy_leak.max: input should be a finite number"),
        ("#" * 70_000, "expected at most 65536 bytes, got 70000"),
    ],
)
def test_bad_gate_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message) as refused:
        gate(tmp_path, text)
    assert "\n" not in str(refused.value)


def test_no_gate_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="expected a readable gate file, got: No such file"):
        Gate.read(tmp_path / "none.yaml")
