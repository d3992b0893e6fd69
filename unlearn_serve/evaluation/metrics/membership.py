"""Can an attacker tell what was to be forgotten from what was never seen? Scores are higher for the unseen."""

import zlib

import numpy as np
from scipy import stats

from unlearn_serve.evaluation.metrics.memorisation import loss
from unlearn_serve.evaluation.readings import Floats, Tokens

K = 0.4
"""Share of the tokens, the least likely ones, that Min-K and Min-K++ look at: open-unlearning's setting."""

_LEAST_VARIANCE = 1e-6
_TINY = 1e-10


def zlib_score(logprobs: Floats, text: str) -> float:
    """Loss over the bytes of the zlib-compressed text (Carlini et al. 2021, arXiv:2012.07805).

    Args:
        logprobs: [n] of the answer's tokens.
        text: the answer.
    """
    return loss(logprobs) / len(zlib.compress(text.encode("utf-8")))


def min_k(logprobs: Floats, k: float = K) -> float:
    """Minus the mean log p of the share k of the tokens that are least likely (Shi et al. 2024, arXiv:2310.16789)."""
    return _least(logprobs, k)


def min_k_plus_plus(tokens: Tokens, k: float = K) -> float | None:
    """As `min_k`, over (log p - mean) / deviation, both over the vocabulary (Zhang et al. 2025, arXiv:2404.02936).

    None where the source does not know the whole distribution.
    """
    if tokens.mean is None or tokens.deviation is None:
        return None
    deviation = np.sqrt(np.maximum(tokens.deviation**2, _LEAST_VARIANCE))
    return _least((tokens.logprobs - tokens.mean) / deviation, k)


def auc(forgotten: Floats, unseen: Floats) -> Floats:
    """P(score of the unseen > score of the forgotten), a tie counting half: the area under the attack's ROC curve.

    0.5: the attacker must guess. Towards 1: still known better than the unseen. Towards 0: known conspicuously less.

    Args:
        forgotten: [..., n] scores, along the last axis.
        unseen: [..., m].

    Returns:
        [...]
    """
    n, m = forgotten.shape[-1], unseen.shape[-1]
    ranks = stats.rankdata(np.concatenate([unseen, forgotten], axis=-1), axis=-1)
    area: Floats = (ranks[..., :m].sum(-1) - m * (m + 1) / 2) / (n * m)
    return area


def privacy_leak(area: Floats, reference: float = 0.5) -> Floats:
    """((1 - AUC) - (1 - AUC_ref)) / (1 - AUC_ref) (Shi et al. 2024, MUSE, arXiv:2407.06460, which gives it in percent).

    0: as a model that never saw the data. Below: still remembered. Above: forgotten so hard that it shows.

    Args:
        area: [...] AUC of the model in question.
        reference: AUC of a model that never saw the data; 0.5 where none is at hand.
    """
    leak: Floats = ((1.0 - area) - (1.0 - reference)) / ((1.0 - reference) + _TINY)
    return leak


def _least(values: Floats, k: float) -> float:
    if values.size == 0:
        raise ValueError("min_k: expected at least one answer token, got none")
    return float(-np.sort(values)[: max(1, int(values.size * k))].mean())
