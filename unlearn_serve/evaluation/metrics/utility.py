"""What a model is still good for."""

import numpy as np
from scipy import stats

from unlearn_serve.evaluation.readings import Floats


def model_utility(scores: Floats) -> Floats:
    """Harmonic mean along the last axis: one score near 0 ruins it, as one lost ability ruins a model (TOFU).

    Args:
        scores: [..., n], each in 0..1; for each retained and general set its probability, ROUGE-L recall and, where
            there are wrong answers, mean max(0, 1 - truth ratio).

    Returns:
        [...]
    """
    with np.errstate(divide="ignore"):  # a score of 0 has a harmonic mean of 0
        mean: Floats = np.asarray(stats.hmean(scores, axis=-1))
    return mean
