"""Whether a model prefers right answers to wrong ones of the same form (TOFU, Maini et al. 2024, arXiv:2401.06121)."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from unlearn_serve.evaluation.readings import Floats

_TINY = 1e-10


def truth_ratio(right_loss: float, wrong_losses: Sequence[float]) -> float:
    """p(wrong) / p(right), with p(right) = exp(-loss) and p(wrong) = exp(-mean loss over the wrong answers).

    Args:
        right_loss: nats a token of the right answer (its paraphrase where there is one).
        wrong_losses: the same of each wrong answer.

    Raises:
        ValueError: no wrong answers.
    """
    if not wrong_losses:
        raise ValueError("truth_ratio: expected at least one wrong answer, got none")
    return float(np.exp(-np.mean(wrong_losses)) / (np.exp(-right_loss) + _TINY))


def forget_truth(ratio: Floats) -> Floats:
    """min(R, 1/R): 1 where wrong and right answers are equally likely, which is what forgetting should reach."""
    return np.minimum(ratio, 1.0 / (ratio + _TINY))


def retain_truth(ratio: Floats) -> Floats:
    """max(0, 1 - R): 1 where the wrong answers are impossible."""
    return np.maximum(0.0, 1.0 - ratio)


def normalised_probability(right: float, wrong: Sequence[float]) -> float:
    """p(right) / (p(right) + sum of p(wrong)), each p normalised by its answer's length."""
    return right / (right + sum(wrong) + _TINY)


def forget_quality(ratios: Floats, reference: Floats) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test: could both sets of truth ratios come from one model?

    Args:
        ratios: truth ratios of the forget set under the model in question.
        reference: the same under a model that never saw the forget set.
    """
    return float(stats.ks_2samp(ratios, reference).pvalue)
