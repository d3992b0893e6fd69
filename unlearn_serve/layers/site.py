"""The identity that marks a site in a transformers model, and how it gets there."""

from typing import Any

import torch
from torch import nn

from unlearn_serve.errors import UnsupportedModel
from unlearn_serve.sites import SITE_NAME, end_forward_in_site, find_ffn_modules


class UnlearningSite(nn.Module):
    """Semantics: U(h) = h. PEFT finds it by its name and puts an `UnlearningLayer` around it.

    Holds no parameter, so base checkpoints load as before. Its one empty, non-persistent buffer follows the model
    from device to device and tells PEFT, which looks for a `weight`, where to put an adapter.
    """

    weight: torch.Tensor

    def __init__(self, features: int, block: int, *, device: torch.device | None = None) -> None:
        """Features: hidden size d. block: index of the decoder block, from 0."""
        super().__init__()
        self.in_features = features
        self.out_features = features
        self.block = block
        self.register_buffer("weight", torch.empty(0, device=device), persistent=False)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Return h itself."""
        return h

    def extra_repr(self) -> str:
        """Block and width, for print(model)."""
        return f"block={self.block}, features={self.in_features}"


def attach_sites(model: nn.Module) -> dict[int, nn.Module]:
    """Hang a site behind every feed-forward network of `model` and return block index -> site, in order.

    Mutates `model`; harmless where the sites are there already (they, or the layers around them, are returned).

    Raises:
        UnsupportedModel: no feed-forward module found, no hidden size in the config, or see `end_forward_in_site`.
    """
    features = _hidden_size(model)
    sites: dict[int, nn.Module] = {}
    for block, (_, ffn) in find_ffn_modules(model).items():
        if not hasattr(ffn, SITE_NAME):
            parameter = next(ffn.parameters(), None)
            device = None if parameter is None or parameter.is_meta else parameter.device
            end_forward_in_site(ffn, UnlearningSite(features, block, device=device))
        sites[block] = getattr(ffn, SITE_NAME)
    return sites


def _hidden_size(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    size = getattr(config, "hidden_size", None)
    if not isinstance(size, int):
        raise UnsupportedModel(f"{type(model).__name__}: expected an integer hidden_size in its config, got {size!r}")
    return size
