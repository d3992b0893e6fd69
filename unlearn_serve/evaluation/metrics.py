"""What is measured, as pure functions; definitions follow open-unlearning (github.com/locuslab/open-unlearning)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unlearn_serve.data import IGNORED


def contains_gold(answer: str, gold: str) -> bool:
    """Whether the gold string occurs in the answer, whatever its case; runs of white space count as one space."""
    return _plain(gold) in _plain(answer)


def accuracy(hits: Sequence[bool]) -> float:
    """Share of hits.

    Raises:
        ValueError: no hits to share.
    """
    if not hits:
        raise ValueError("accuracy: expected at least one answer, got none")
    return sum(hits) / len(hits)


def token_logprobs(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """Log-probability of each labelled token of each row.

    Args:
        logits: [B, T, V], any floating dtype; the softmax is taken in fp32.
        labels: [B, T], `IGNORED` where nothing counts; the logits at t - 1 predict the label at t.

    Returns:
        One fp32 vector a row, as long as the row has labels (its first position has no logits before it and never
        counts).
    """
    targets = labels[:, 1:]
    counted = targets != IGNORED
    # Only labelled positions are widened to fp32: prompts are most of a batch and the vocabulary is large.
    chosen = torch.log_softmax(logits[:, :-1][counted].float(), dim=-1)
    picked = chosen.gather(-1, targets[counted].unsqueeze(-1)).squeeze(-1)
    return list(torch.split(picked, counted.sum(-1).tolist()))


def probability(logprobs: Tensor) -> float:
    """exp(mean log p) of an answer's tokens: its probability, normalised by length.

    Raises:
        ValueError: no tokens.
    """
    if logprobs.numel() == 0:
        raise ValueError("probability: expected at least one answer token, got none")
    return min(1.0, math.exp(logprobs.double().mean().item()))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
