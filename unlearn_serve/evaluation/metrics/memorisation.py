"""How well a model knows an answer by heart."""

import math

from unlearn_serve.evaluation.readings import Bools, Floats


def loss(logprobs: Floats) -> float:
    """-mean log p of an answer's tokens, in nats a token.

    Raises:
        ValueError: no tokens.
    """
    if logprobs.size == 0:
        raise ValueError("loss: expected at least one answer token, got none")
    return float(-logprobs.mean()) + 0.0  # no minus zero


def probability(logprobs: Floats) -> float:
    """exp(mean log p) of an answer's tokens: its probability, normalised by length.

    Raises:
        ValueError: no tokens.
    """
    return min(1.0, math.exp(-loss(logprobs)))


def exact_memorisation(greedy: Bools) -> float:
    """Share of an answer's tokens that are the most likely one after the right tokens before them.

    Tirumala et al. 2022 (arXiv:2205.10770).

    Args:
        greedy: [n], whether each token of the right answer is the arg-max in its place.

    Raises:
        ValueError: no tokens.
    """
    if greedy.size == 0:
        raise ValueError("exact_memorisation: expected at least one answer token, got none")
    return float(greedy.mean())


def extraction_strength(greedy: Bools) -> float:
    """1 - k/n; k is the fewest tokens of an answer of n after which the greedy continuation is the rest of it.

    Carlini et al. 2021 (arXiv:2012.07805). 1: the prompt alone extracts the answer; 1/n: only the last token follows.
    As in open-unlearning an answer whose last token does not follow gives 1/n too, not 0: k is at most n - 1.

    Args:
        greedy: [n], whether each token of the right answer is the arg-max in its place.

    Raises:
        ValueError: no tokens.
    """
    if greedy.size == 0:
        raise ValueError("extraction_strength: expected at least one answer token, got none")
    misses = (~greedy).nonzero()[0]
    k = min(int(misses[-1]) + 1, greedy.size - 1) if misses.size else 0
    return 1.0 - k / greedy.size
