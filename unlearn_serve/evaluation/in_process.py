"""Shared by the sources that compute in this process: what logits say of an answer, and what ends one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unlearn_serve.evaluation.readings import Floats, Tokens


def tokens_of(logits: Tensor, answer: Sequence[int], closed: bool) -> tuple[Tokens, list[int]]:
    """One answer's log-probabilities in fp32 out of its logits [n, V], and the most likely token in each place."""
    logp = torch.log_softmax(logits.float(), dim=-1)
    p = logp.exp()
    finite = logp.masked_fill(p == 0, 0.0)
    mean = (p * finite).sum(-1)
    variance = ((p * finite.square()).sum(-1) - mean.square()).clamp_min(0.0)
    labels = torch.tensor(answer, device=logits.device)
    best = logits.argmax(-1)
    tokens = Tokens(
        _array(logp.gather(-1, labels[:, None]).squeeze(-1)),
        (best == labels).cpu().numpy(),
        _array(mean),
        _array(variance.sqrt()),
        closed,
    )
    return tokens, best.tolist()


def stops_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer, as generation itself has them."""
    own = getattr(model.generation_config, "eos_token_id", None)
    stops = tokenizer.eos_token_id if own is None else own
    return frozenset([stops] if isinstance(stops, int) else stops or [])


def _array(values: Tensor) -> Floats:
    found: Floats = values.double().cpu().numpy()
    return found
