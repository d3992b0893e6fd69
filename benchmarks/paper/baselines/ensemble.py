"""Several models that answer as one: the mean of their probabilities."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class Ensemble(nn.Module):
    """Semantics: logits = log(1/K sum over members k of softmax(logits_k)): a softmax of them is the mean.

    Takes what its members take. Their keys and values travel in one cache, whose layers are those of the first member,
    then those of the second, and so on: whoever picks rows and positions out of a cache need not know of members.
    """

    def __init__(self, members: Sequence[PreTrainedModel]) -> None:
        """`members`: models of one architecture, in evaluation mode; at least one."""
        super().__init__()
        self.members = nn.ModuleList(members)
        self.config = members[0].config
        self.generation_config = getattr(members[0], "generation_config", None)

    @property
    def device(self) -> torch.device:
        """The members'."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The members'."""
        return next(self.parameters()).dtype

    def forward(self, *args: Any, past_key_values: DynamicCache | None = None, **inputs: Any) -> CausalLMOutputWithPast:
        """Return the members' mean as `logits`, fp32, and the longer cache where one was asked for."""
        caches: list[dict[str, Any]] = [{} for _ in self.members]
        if past_key_values is not None:
            caches = [{"past_key_values": one} for one in _apart(past_key_values, len(self.members))]
        outs = [member(*args, **inputs, **cache) for member, cache in zip(self.members, caches, strict=True)]
        log_probs = torch.stack([out.logits.float().log_softmax(-1) for out in outs])
        logits = torch.logsumexp(log_probs, 0) - torch.log(torch.tensor(float(len(outs))))
        kept = past_key_values is not None or inputs.get("use_cache", False)
        cache = _together([out.past_key_values for out in outs]) if kept else None
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)


def _apart(cache: DynamicCache, members: int) -> list[DynamicCache]:
    layers = [(keys, values) for keys, values, *_ in cache]
    each = len(layers) // members
    return [DynamicCache(layers[k * each : (k + 1) * each]) for k in range(members)]


def _together(caches: Sequence[DynamicCache]) -> DynamicCache:
    return DynamicCache([(keys, values) for cache in caches for keys, values, *_ in cache])
