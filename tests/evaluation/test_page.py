"""The HTML report: self-contained, whole, and showing what there is to show."""

import json
import re
from pathlib import Path

import pytest
from evaluation.made_up import scores

from unlearn_serve.data import Example
from unlearn_serve.errors import DataError, UnlearnServeError
from unlearn_serve.evaluation import write_report
from unlearn_serve.evaluation.measures import Reference, measure
from unlearn_serve.evaluation.page import ideal
from unlearn_serve.evaluation.plots import TRAINING_LOG
from unlearn_serve.evaluation.record import EvaluatedSet, Results
from unlearn_serve.format import DataRef
from unlearn_serve.training.callbacks import LOG_NAME, TrainingLog


def results(*, truth: bool = True) -> Results:
    examples = [Example(prompt="Who <i>wrote</i> it?", completion=" Ada.", answer="Ada", id=str(i)) for i in (1, 2)]
    rows = {
        "before": [scores(truth_ratio=ratio if truth else None) for ratio in (0.1, 0.2)],
        "after": [scores(truth_ratio=ratio if truth else None, text="<b>No</b> idea") for ratio in (0.9, 1.1)],
    }
    return Results(
        model="tiny",
        release=None,
        max_new_tokens=8,
        seed=0,
        sets={"forget": EvaluatedSet(data=DataRef(sha256="0" * 64, rows=2), examples=examples, scores=rows)},
        measures={phase: measure({"forget": found}, seed=0) for phase, found in rows.items()},
    )


def test_the_report_holds_all_it_shows(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / TRAINING_LOG)
    for step, (forget, retain) in enumerate([(0.9, 0.8), (0.1, float("nan")), (0.01, 0.7)], start=1):
        log.write(step, loss=1.0, forget_probability=forget, retain_probability=retain)
    log.write(3, check={"forget_probability": 0.01, "retain_probability": 0.7, "retain_kl": 0.0})
    path = write_report(
        tmp_path / "report.html",
        results(),
        adapter_dir=tmp_path,
        reference=Reference(truth_ratios=[1.0, 0.8], attack_area=None),
    )
    text = path.read_text()
    assert text.count("<svg") == 2, "training's curves and the truth ratios"
    assert not re.search(
        r"<script|<link|<img|@import|url\((?!#)|https?://(?!www\.w3\.org|purl\.org|creativecommons|matplotlib)", text
    )
    assert "<mark>Ada</mark> wrote it." in text
    assert "&lt;b&gt;No&lt;/b&gt; idea" in text
    assert "Who &lt;i&gt;wrote&lt;/i&gt; it?" in text
    for name, found in results().measures["after"].items():
        assert f"<td>{name}</td>" in text
        assert f"{found.value:.4g}" in text
    assert path.stat().st_mode & 0o077 == 0, "it quotes what is to be forgotten"


def test_without_log_and_wrong_answers_there_is_nothing_to_draw(tmp_path: Path) -> None:
    assert "<svg" not in write_report(tmp_path / "r.html", results(truth=False), adapter_dir=tmp_path).read_text()


def test_the_same_results_render_to_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write_report(tmp_path / name, results()).read_bytes() for name in ("one.html", "two.html"))
    assert one == two


def test_the_log_is_the_one_that_training_writes(tmp_path: Path) -> None:
    assert TRAINING_LOG == LOG_NAME
    (tmp_path / TRAINING_LOG).write_text(json.dumps({"loss": 1}) + "\n")
    with pytest.raises(DataError, match=r"training_log.jsonl:1: expected a line of training's log, got: 'step'"):
        write_report(tmp_path / "r.html", results(), adapter_dir=tmp_path)


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UnlearnServeError, match=r"pip install 'unlearn-serve\[report\]'"):
        write_report(tmp_path / "r.html", results())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forget.probability", "low"),
        ("forget_paraphrase.accuracy", "low"),
        ("forget.lm_loss", "high"),
        ("forget.truth_ratio", "high"),
        ("retain.probability", "high"),
        ("retain.lm_loss", "low"),
        ("holdout.probability", "as before"),
        ("mia_zlib", "0.5"),
        ("privacy_leak", "0"),
        ("model_utility", "high"),
    ],
)
def test_where_a_measure_should_be(name: str, expected: str) -> None:
    assert ideal(name) == expected
