"""The trunk: the decoder blocks below the first unlearning layer, whose output training never changes.

It is computed once per example and kept; later passes start at the first block that has a layer. The model's own
forward still runs (masks, rotary embeddings, final norm, output layer), so nothing here knows an architecture.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from unlearn_serve.sites import find_ffn_modules


class Trunk:
    """Records what enters the first block that has a layer, and replays it in place of the blocks below.

    Semantics: with `replay(x)`, model(tokens) = upper_blocks(x), whatever the lower blocks would have computed.
    """

    def __init__(self, model: nn.Module, first_block: int) -> None:
        """`model`: holds the blocks, `first_block`: index of the lowest block with an unlearning layer."""
        blocks = {
            index: model.get_submodule(path.rpartition(".")[0]) for index, (path, _) in find_ffn_modules(model).items()
        }
        self._below = [block for index, block in blocks.items() if index < first_block]
        self._first = blocks[first_block]

    @contextmanager
    def record(self) -> Iterator[list[torch.Tensor]]:
        """Within, each pass of the model appends what enters the first block: [1, T, d], detached."""
        seen: list[torch.Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((args[0] if args else kwargs["hidden_states"]).detach())

        handle = self._first.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield seen
        finally:
            handle.remove()

    @contextmanager
    def replay(self, hidden: torch.Tensor) -> Iterator[None]:
        """Within, the blocks below are skipped and the first block gets `hidden` [1, T, d]."""

        def swap(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})

        handle = self._first.register_forward_pre_hook(swap, with_kwargs=True)
        for block in self._below:
            block.forward = _pass_through  # an instance attribute shadows the class's method until deleted
        try:
            yield
        finally:
            for block in self._below:
                del block.forward
            handle.remove()


def _pass_through(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return hidden_states
