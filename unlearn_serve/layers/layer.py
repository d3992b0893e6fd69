"""The unlearning layer as a PEFT LoRA layer: LoRA's two maps with an activation between them."""

from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from unlearn_kernels import activate
from unlearn_serve.layers.site import UnlearningSite

BASE_ADAPTER = "__base__"
"""PEFT's name, in a batch of mixed adapters, for a row that no adapter touches."""


class UnlearningLayer(nn.Module, LoraLayer):  # type: ignore[misc]  # peft ships no types
    """Semantics: U(h) = h + sum over active adapters a of W_up[a] act_a(W_down[a] h).

    Shapes: h [..., d]; W_down = `lora_A[a].weight` [r, d]; W_up = `lora_B[a].weight` [d, r], zero at first, so that U
    starts as the identity. Every adapter reads the same h: their deltas add.
    Dtypes: the sum is taken in the adapter's dtype (fp32 when trained) and rounded once to h's; nothing is mutated.
    With adapters disabled, or none active here, h itself is returned.

    PEFT's `add_weighted_adapter(combination_type="cat")` is exact for weights of 1 (`cat_adapters` sees to that);
    every way that adds up weight matrices is refused, since act stands between them.
    """

    lora_A: Any  # noqa: N815  # ModuleDict of Linear, by adapter name; peft's spelling
    lora_B: Any  # noqa: N815
    lora_dropout: Any
    active_adapters: list[str]
    disable_adapters: bool

    adapter_layer_names = ("lora_A", "lora_B")
    other_param_names = (
        "r",
        "lora_alpha",
        "scaling",
        "lora_dropout",
        "use_dora",
        "use_rslora",
        "lora_bias",
        "activation",
    )

    def __init__(
        self, base_layer: UnlearningSite, adapter_name: str, config: Any, r: int, lora_alpha: int, **kwargs: Any
    ) -> None:
        """Called by PEFT with the site to wrap; `config` is an `UnlearnConfig`."""
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        self.activation: dict[str, str] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    @property
    def site(self) -> UnlearningSite:
        """The site that this layer wraps."""
        return cast(UnlearningSite, LoraLayer.get_base_layer(self))

    @property
    def block(self) -> int:
        """Index of the decoder block this layer belongs to."""
        return self.site.block

    def maps(self, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the live parameters (W_down [r, d], W_up [d, r]) of one adapter."""
        return self.lora_A[adapter_name].weight, self.lora_B[adapter_name].weight

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        """Add one adapter's maps here (PEFT's hook for every further adapter).

        Raises:
            ValueError: the configuration names no activation, so it is not an `UnlearnConfig`.
        """
        activation = getattr(config, "unlearn_activation", None)
        if activation is None:
            raise ValueError(
                f"adapter {adapter_name!r}: expected an UnlearnConfig, got {type(config).__name__}, which names no "
                "activation; load it with unlearn_serve.layers.load_adapter"
            )
        self.activation[adapter_name] = activation
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    def forward(self, h: torch.Tensor, *, adapter_names: list[str] | None = None) -> torch.Tensor:
        """Return U(h); with `adapter_names`, row i of h (first dimension) is served by adapter i alone.

        Raises:
            ValueError: as many names as rows are expected.
        """
        LoraLayer._check_forward_args(self, h, adapter_names=adapter_names)
        if self.disable_adapters:
            return h
        if adapter_names is not None:
            return self._forward_mixed(h, adapter_names)
        here = [name for name in self.active_adapters if name in self.lora_A]
        if not here:
            return h
        total = h + self.delta(h, here[0])
        for name in here[1:]:
            total = total + self.delta(h, name)
        return total.to(h.dtype)

    def delta(self, h: torch.Tensor, adapter_name: str) -> torch.Tensor:
        """Return W_up act(W_down h) of one adapter, in the adapter's dtype; shape as h."""
        down, up = self.lora_A[adapter_name], self.lora_B[adapter_name]
        x = self.lora_dropout[adapter_name](h.to(down.weight.dtype))
        out: torch.Tensor = up(activate(down(x), self.activation[adapter_name]))
        return out

    def _forward_mixed(self, h: torch.Tensor, adapter_names: list[str]) -> torch.Tensor:
        out = h.clone()
        for name in dict.fromkeys(adapter_names):
            if name == BASE_ADAPTER or name not in self.lora_A:
                continue
            rows = [i for i, wanted in enumerate(adapter_names) if wanted == name]
            out[rows] = (h[rows] + self.delta(h[rows], name)).to(h.dtype)
        return out

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002
        """Refused: the site has no weight that could absorb the layer.

        Raises:
            ValueError: always.
        """
        raise ValueError("an unlearning layer cannot be merged into the base weights; keep it as an adapter")

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Refused: with an activation between its maps, a layer is not a weight matrix.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"adapter {adapter!r}: an unlearning layer is no matrix; combine layers with cat_adapters")

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:  # noqa: ARG002
        """Tell PEFT that no plain LoRA equals this layer."""
        return False

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        site = cast(UnlearningSite, module)
        return site.in_features, site.out_features

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # The device is the site's; the dtype is not: the maps stay in fp32 over a bf16 base.
        target = device or self.site.weight.device
        for maps in (self.lora_A, self.lora_B):
            if not maps[adapter_name].weight.is_meta:
                maps[adapter_name].to(target)
