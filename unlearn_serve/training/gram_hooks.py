"""Recording Grams: G = X^T X of what each of an adapter's maps reads on the training data."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from unlearn_serve.fusion import GramSketcher, SiteGrams
from unlearn_serve.layers import UnlearningLayer
from unlearn_serve.training.frozen import FrozenOutputs


@torch.no_grad()
def record_grams(
    model: PeftModel,
    forward: nn.Module,
    outputs: FrozenOutputs,
    members: Sequence[int],
    *,
    sketch_rows: int | None = None,
    adapter_name: str = "default",
    advance: Callable[[int], None] = lambda _: None,
) -> dict[int, SiteGrams]:
    """Semantics: by block, down = sum of h h^T [d, d] and up = sum of a a^T [r, r], a = act(W_down h), in fp32.

    The sums run over all tokens, prompts and answers, of the training examples `members`, with the trained layers on;
    a prefix that examples share is counted once for each row it is computed in. With `sketch_rows`, down is a
    `GramSketch` of so many rows.
    """
    with _summing(model, adapter_name, sketch_rows) as sums:
        for row in outputs.rows(members):
            outputs.run_layers(forward, row)
            advance(len(row.members))
    return {block: SiteGrams(down=down.result(), up=up.result()) for block, (down, up) in sorted(sums.items())}


def forgotten_and_retained(
    model: PeftModel,
    forward: nn.Module,
    outputs: FrozenOutputs,
    forget: Sequence[int],
    retain: Sequence[int],
    *,
    sketch_rows: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[int, SiteGrams]:
    """The Grams of both sets by block, see `record_grams`."""
    forgotten, retained = (
        record_grams(model, forward, outputs, members, sketch_rows=sketch_rows, advance=advance)
        for members in (forget, retain)
    )
    return {block: replace(one, retained=retained[block] if retain else None) for block, one in forgotten.items()}


class _ExactGram:
    """Sums x x^T, fp32 [n, n]."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._gram = torch.zeros(size, size, device=device)

    def add(self, x: torch.Tensor) -> None:
        x = x.float()
        self._gram.addmm_(x.T, x)

    def result(self) -> torch.Tensor:
        return self._gram.cpu()


_Sums = dict[int, tuple[_ExactGram | GramSketcher, _ExactGram]]


@contextmanager
def _summing(model: PeftModel, adapter_name: str, sketch_rows: int | None) -> Iterator[_Sums]:
    sums: _Sums = {}
    handles = []
    for layer in model.modules():
        if not isinstance(layer, UnlearningLayer) or adapter_name not in layer.lora_A:
            continue
        down, up = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
        device, d = down.weight.device, down.in_features
        gram = _ExactGram(d, device) if sketch_rows is None else GramSketcher(sketch_rows, d, device)
        sums[layer.block] = gram, _ExactGram(up.in_features, device)
        for linear, one in zip((down, up), sums[layer.block], strict=True):
            handles.append(linear.register_forward_pre_hook(_adder(one)))
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _adder(gram: _ExactGram | GramSketcher) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def add(_: nn.Module, args: tuple[Any, ...]) -> None:
        gram.add(args[0].reshape(-1, args[0].shape[-1]))

    return add
