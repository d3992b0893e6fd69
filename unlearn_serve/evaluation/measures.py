"""What the examples' scores say about a model: one value with its confidence interval for each measure.

A measure of one set is named `set.measure` (`forget.extraction_strength`), one over several sets by itself
(`privacy_leak`). What a set is for follows from its name: `forget...` was to be forgotten, `retain...` to stay,
`holdout` no training saw, `general...` is what the model should be good at.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from unlearn_serve.evaluation.bootstrap import interval
from unlearn_serve.evaluation.metrics import membership, truth
from unlearn_serve.evaluation.metrics.utility import model_utility
from unlearn_serve.evaluation.readings import Floats
from unlearn_serve.evaluation.scores import Scores
from unlearn_serve.format.strict_json import StrictModel

SET_MEASURES = (
    "accuracy",
    "exact_match",
    "probability",
    "rouge1",
    "rouge_l",
    "exact_memorisation",
    "extraction_strength",
    "lm_loss",
    "truth_ratio",
    "normalised_probability",
)
ATTACKS = {"mia_loss": "loss", "mia_zlib": "zlib", "mia_min_k": "min_k", "mia_min_k_plus_plus": "min_k_plus_plus"}
MODEL_MEASURES = (*ATTACKS, "privacy_leak", "forget_quality", "model_utility")
LEAK_ATTACK = "mia_min_k"
"""The attack that the privacy leak is taken from, as in open-unlearning."""

FORGET, HOLDOUT = "forget", "holdout"


class Measure(StrictModel):
    """A value, its 95 % confidence interval (null where it has none), and how many examples it rests on."""

    value: float
    low: float | None
    high: float | None
    samples: int


class Reference(StrictModel):
    """What is needed of the evaluation of a model that never saw the forget set."""

    truth_ratios: list[float]
    attack_area: float | None


Rows = Sequence[Scores]
Measures = dict[str, Measure]


def measure(sets: Mapping[str, Rows], *, seed: int, reference: Reference | None = None) -> Measures:
    """All measures that the sets allow.

    Args:
        sets: each set's scores, by its name; none is empty.
        seed: of the bootstrap.
        reference: for forget quality, and for the privacy leak, which else takes 0.5 for the reference's AUC.
    """
    found = {f"{name}.{what}": value for name, rows in sets.items() for what, value in _of_set(name, rows, seed)}
    if FORGET in sets and HOLDOUT in sets:
        found |= _membership(sets[FORGET], sets[HOLDOUT], seed, reference)
    if FORGET in sets and reference is not None and reference.truth_ratios:
        found |= _forget_quality(sets[FORGET], np.array(reference.truth_ratios))
    if useful := {name: rows for name, rows in sets.items() if name.startswith(("retain", "general"))}:
        found["model_utility"] = _utility(useful, seed)
    return found


def to_be_forgotten(name: str) -> bool:
    """Whether a set of this name holds what was to be forgotten."""
    return name.startswith(FORGET)


def _of_set(name: str, rows: Rows, seed: int) -> Iterable[tuple[str, Measure]]:
    columns = {
        "accuracy": _column(rows, "correct"),
        "exact_match": _column(rows, "exact_match"),
        **{
            what: _column(rows, what)
            for what in ("probability", "rouge1", "rouge_l", "exact_memorisation", "extraction_strength")
        },
    }
    if (ratios := _column(rows, "truth_ratio")).size:
        columns["truth_ratio"] = (truth.forget_truth if to_be_forgotten(name) else truth.retain_truth)(ratios)
        columns["normalised_probability"] = _column(rows, "normalised_probability")
    for what, values in columns.items():
        yield what, _measure(_mean_of(values), [values.size], seed)
    tokens, losses = _column(rows, "tokens"), _column(rows, "loss")
    nats = losses * tokens

    def lm_loss(index: Floats) -> Floats:
        mean: Floats = nats[index].sum(-1) / tokens[index].sum(-1)
        return mean

    yield "lm_loss", _measure(lm_loss, [len(rows)], seed)


def _membership(forget: Rows, holdout: Rows, seed: int, reference: Reference | None) -> Measures:
    found: Measures = {}
    for name, score in ATTACKS.items():
        known, unseen = _column(forget, score), _column(holdout, score)
        if not known.size or not unseen.size:
            continue

        def area(one: Floats, two: Floats, known: Floats = known, unseen: Floats = unseen) -> Floats:
            return membership.auc(known[one], unseen[two])

        found[name] = _measure(area, [known.size, unseen.size], seed)
        if name == LEAK_ATTACK:
            at = 0.5 if reference is None or reference.attack_area is None else reference.attack_area

            def leak(one: Floats, two: Floats, area: Callable[..., Floats] = area, at: float = at) -> Floats:
                return membership.privacy_leak(area(one, two), at)

            found["privacy_leak"] = _measure(leak, [known.size, unseen.size], seed)
    return found


def _forget_quality(forget: Rows, reference: Floats) -> Measures:
    ratios = _column(forget, "truth_ratio")
    if not ratios.size:
        return {}
    # A p-value is itself a statement about chance: resampling it would say nothing that one could use.
    value = truth.forget_quality(ratios, reference)
    return {"forget_quality": Measure(value=value, low=None, high=None, samples=ratios.size)}


def _utility(sets: Mapping[str, Rows], seed: int) -> Measure:
    by_set: list[list[Floats]] = []
    for name, rows in sets.items():
        ratios = _column(rows, "truth_ratio")
        # General questions are multiple choice in disguise: the right answer is weighed against the wrong ones.
        normalised = ratios.size == len(rows) and not name.startswith("retain")
        columns = [_column(rows, "normalised_probability" if normalised else "probability"), _column(rows, "rouge_l")]
        by_set.append([*columns, truth.retain_truth(ratios)] if ratios.size == len(rows) else columns)

    def utility(*indices: Floats) -> Floats:
        means = [values[index].mean(-1) for index, columns in zip(indices, by_set, strict=True) for values in columns]
        return model_utility(np.stack(means, axis=-1))

    return _measure(utility, [len(rows) for rows in sets.values()], seed)


def _measure(statistic: Callable[..., Floats], sizes: Sequence[int], seed: int) -> Measure:
    """A statistic of row indices: its value on all rows, and its interval."""
    spread = interval(statistic, sizes, seed=seed)
    low, high = (None, None) if spread is None else spread
    return Measure(value=float(statistic(*(np.arange(size) for size in sizes))), low=low, high=high, samples=sum(sizes))


def _mean_of(values: Floats) -> Callable[[Floats], Floats]:
    def mean(index: Floats) -> Floats:
        found: Floats = values[index].mean(-1)
        return found

    return mean


def _column(rows: Rows, name: str) -> Floats:
    """One score of each row that has it."""
    found = [getattr(row, name) for row in rows]
    return np.array([value for value in found if value is not None], dtype=np.float64)
