"""What the sites put out in a pass of the model, and the direction that `misdirection` drives it to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from unlearn_serve.layers import UnlearningLayer

_SEED_STRIDE = 1_000_003


class SiteStates:
    """Records the outputs of an adapter's sites; with the adapter off they are those of the frozen model."""

    def __init__(self, model: PeftModel, *, seed: int, adapter_name: str = "default") -> None:
        """`seed`: what the directions are drawn from, on the CPU, for each block by itself."""
        self._layers = {
            layer.block: layer
            for layer in model.modules()
            if isinstance(layer, UnlearningLayer) and adapter_name in layer.lora_A
        }
        self._seed = seed
        self._directions: dict[int, torch.Tensor] = {}

    @contextmanager
    def record(self, positions: torch.Tensor) -> Iterator[dict[int, torch.Tensor]]:
        """Within, each pass fills a map from block to the site's output [A, d] at `positions` int64 [A] of the row."""
        seen: dict[int, torch.Tensor] = {}

        def keeper(block: int) -> Any:
            def keep(_: nn.Module, __: tuple[Any, ...], out: torch.Tensor) -> None:
                seen[block] = out.reshape(-1, out.shape[-1])[positions]

            return keep

        handles = [layer.register_forward_hook(keeper(block)) for block, layer in self._layers.items()]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def direction(self, block: int) -> torch.Tensor:
        """Return the block's direction, fp32 [d] of norm 1: drawn once, uniformly from the sphere."""
        if block not in self._directions:
            site = self._layers[block].site
            generator = torch.Generator().manual_seed(self._seed * _SEED_STRIDE + block)
            drawn = torch.randn(site.in_features, generator=generator)
            self._directions[block] = (drawn / drawn.norm()).to(site.weight.device)
        return self._directions[block]
