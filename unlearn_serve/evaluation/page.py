"""The HTML report of an evaluation: one self-contained file. It quotes the data, so it stays local."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from unlearn_serve.data import Example
from unlearn_serve.evaluation import plots
from unlearn_serve.evaluation.measures import Measure, Reference, to_be_forgotten
from unlearn_serve.evaluation.record import Results
from unlearn_serve.format.atomic import write_atomically
from unlearn_serve.pages import drawn, render

TEMPLATE = Path(__file__).with_name("report.html")
SAMPLES = 50
"""Rows of a set that are shown."""

_IDEALS = {"privacy_leak": "0", "forget_quality": "high", "model_utility": "high"}


@dataclass(frozen=True)
class _Line:
    """A line of the table of measures; `values` has one measure a phase, None where the phase lacks it."""

    name: str
    ideal: str
    values: Sequence[Measure | None]


def write_report(
    path: Path, results: Results, *, adapter_dir: Path | None = None, reference: Reference | None = None
) -> Path:
    """Write the report to `path`, readable by its owner only, and return the path.

    Args:
        path: of the HTML file.
        results: what to show.
        adapter_dir: whose training log is shown, where it has one.
        reference: whose truth ratios are shown beside those of the forget set.

    Raises:
        UnlearnServeError: matplotlib is not installed.
        DataError: the training log is not what training writes.
    """
    log = [] if adapter_dir is None else plots.read_training_log(adapter_dir)
    with_truth = plots.truth_ratio_sets(results)
    text = render(
        TEMPLATE,
        results=results,
        phases=list(results.measures),
        lines=_lines(results),
        samples={name: _samples(results, name) for name in results.sets},
        shown=SAMPLES,
        curves=drawn(plots.forget_retain_curves, log) if log else None,
        truth=drawn(plots.truth_ratios, results, with_truth, reference) if with_truth else None,
        version=metadata.version("unlearn-serve"),
    )
    write_atomically(path, text.encode("utf-8"), mode=0o600)
    return path


def ideal(name: str) -> str:
    """Where a measure should be: "high", "low", a number, or "as before" for what training never touched."""
    of_set, _, measure = name.rpartition(".")
    if not of_set:
        return _IDEALS.get(measure, "0.5")
    if measure == "truth_ratio":
        return "high"
    if of_set == "holdout":
        return "as before"
    return "low" if to_be_forgotten(of_set) is (measure != "lm_loss") else "high"


def _lines(results: Results) -> list[_Line]:
    names = dict.fromkeys(name for found in results.measures.values() for name in found)
    return [_Line(name, ideal(name), [found.get(name) for found in results.measures.values()]) for name in names]


def _samples(results: Results, name: str) -> list[tuple[str, str, list[str]]]:
    """Question, gold string, and the answer of each phase, of the first rows of a set."""
    found = results.sets[name]
    return [
        (_question(example), example.answer, [rows[index].text for rows in found.scores.values()])
        for index, example in enumerate(found.examples[:SAMPLES])
    ]


def _question(example: Example) -> str:
    if example.prompt is None:
        return example.completion[:80]
    return example.prompt if isinstance(example.prompt, str) else example.prompt[-1].content
