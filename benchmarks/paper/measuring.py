"""Scores of a model in memory on named sets, and what a result file keeps of them: figures, never texts."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedTokenizerBase

from unlearn_serve.data import Example
from unlearn_serve.evaluation.checkpoint import Checkpoint
from unlearn_serve.evaluation.measures import Reference, measure
from unlearn_serve.evaluation.readings import probe
from unlearn_serve.evaluation.scores import Scores, score

NO_ANSWERS = 1
"""`max_new_tokens` where no greedy answer is scored: what it costs is next to nothing."""

SHOWN = ("forget.probability", "forget.extraction_strength", "retain.probability")
"""What a study shows of each case."""

KEPT = ("probability", "extraction_strength", "exact_memorisation", "rouge_l", "truth_ratio", "loss", "min_k")
"""Scores that a result keeps of each row."""


def read_sets(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Example]],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    max_length: int = 512,
) -> dict[str, list[Scores]]:
    """Score every row of every set; rows of like length share a pass, whatever their set."""
    rows = [row for examples in sets.values() for row in examples]
    probes = [probe(row, tokenizer, max_length) for row in rows]
    readings = Checkpoint(model, tokenizer, batch_size=batch_size).read(probes, max_new_tokens=max_new_tokens)
    scored = iter([score(*pair) for pair in zip(rows, readings, strict=True)])
    return {name: list(islice(scored, len(examples))) for name, examples in sets.items()}


def measures(
    scores: Mapping[str, Sequence[Scores]], *, seed: int = 0, reference: Reference | None = None
) -> dict[str, dict[str, Any]]:
    """Every measure of docs/evaluation.md with its confidence interval, as JSON values."""
    found = measure(scores, seed=seed, reference=reference)
    return {name: rounded(one.model_dump(mode="json")) for name, one in found.items()}


def columns(rows: Sequence[Scores]) -> dict[str, list[float | None]]:
    """The scores of each row that a result keeps."""
    return {name: [rounded(getattr(row, name)) for row in rows] for name in KEPT}


def reference(record: Mapping[str, Any]) -> Reference:
    """What the result of a model that never saw the forgotten rows says for comparison: its `rows` and `measures`."""
    ratios = [ratio for ratio in record["rows"]["forget"]["truth_ratio"] if ratio is not None]
    area = record["measures"].get("mia_min_k")
    return Reference(truth_ratios=ratios, attack_area=None if area is None else area["value"])


def accuracy(rows: Sequence[Scores]) -> float:
    """The share of rows whose right answer is likelier than the wrong ones: a classifier's accuracy."""
    return statistics.fmean(row.normalised_probability > 0.5 for row in rows if row.normalised_probability is not None)


def rouge(rows: Sequence[Scores], examples: Sequence[Example]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, 2 and L of the greedy answers, as summaries are judged."""
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    found = [scorer.score(one.completion.strip(), row.text) for one, row in zip(examples, rows, strict=True)]
    return {name: statistics.fmean(one[name].fmeasure for one in found) for name in ("rouge1", "rouge2", "rougeL")}


def rounded(value: Any) -> Any:
    """Floats to six digits, also inside lists and dicts."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return value
