"""Recording Grams: G = X^T X of what each of an adapter's maps reads on the training data."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from unlearn_serve.fusion.grams import SiteGrams
from unlearn_serve.layers import UnlearningLayer
from unlearn_serve.training.frozen import FrozenOutputs


@torch.no_grad()
def record_grams(
    model: PeftModel,
    forward: nn.Module,
    outputs: FrozenOutputs,
    members: Sequence[int],
    *,
    adapter_name: str = "default",
    advance: Callable[[int], None] = lambda _: None,
) -> dict[int, SiteGrams]:
    """Semantics: by block, down = sum of h h^T [d, d] and up = sum of a a^T [r, r], a = act(W_down h), in fp32.

    The sums run over all tokens, prompts and answers, of the training examples `members`, with the trained layers on;
    a prefix that examples share is counted once for each row it is computed in.
    """
    with _summing(model, adapter_name) as sums:
        for row in outputs.rows(members):
            outputs.student_logits(forward, row)
            advance(len(row.members))
    return {block: SiteGrams(down=down.cpu(), up=up.cpu()) for block, (down, up) in sorted(sums.items())}


@contextmanager
def _summing(model: PeftModel, adapter_name: str) -> Iterator[dict[int, tuple[torch.Tensor, torch.Tensor]]]:
    sums: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = []
    for layer in model.modules():
        if not isinstance(layer, UnlearningLayer) or adapter_name not in layer.lora_A:
            continue
        maps = (layer.lora_A[adapter_name], layer.lora_B[adapter_name])
        grams = tuple(torch.zeros(m.in_features, m.in_features, device=m.weight.device) for m in maps)
        sums[layer.block] = (grams[0], grams[1])
        for linear, gram in zip(maps, grams, strict=True):
            handles.append(linear.register_forward_pre_hook(_adder(gram)))
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _adder(gram: torch.Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def add(_: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].reshape(-1, gram.shape[0]).float()
        gram.addmm_(x.T, x)

    return add
