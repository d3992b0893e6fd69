"""A site that vLLM's LoRA manager fills: it rides on the adapter path of vLLM, and still serves the default."""

from typing import Any, ClassVar

import torch
from vllm.lora.layers import BaseLayerWithLoRA

from unlearn_serve.serving.route_table import RouteTable
from unlearn_serve.serving.slots import DEFAULT_SLOTS, EnforcedSite
from unlearn_serve.serving.vllm_lora import route_of_token
from unlearn_serve.sites import SITE_NAME


class RoutedSite(EnforcedSite, BaseLayerWithLoRA):  # type: ignore[misc]  # mypy does not follow vllm
    """`EnforcedSite` with a slot for each of vLLM's adapter slots.

    vLLM finds it by its class and suffix, writes adapters into it and the batch's routing into a buffer of its own.
    Only what the route table knows as a verified release is written; any other adapter leaves its tokens under the
    default.
    """

    embedding_modules: ClassVar = {SITE_NAME: "unlearning layer"}
    """Makes the suffix one that adapters may target."""

    routes: RouteTable

    @property
    def lora_a_stacked(self) -> tuple[torch.Tensor]:
        """W_down of the routes' slots, [N, 1, R, d]; vLLM reads shapes and dtype."""
        return (self.w_down[DEFAULT_SLOTS:].unsqueeze(1),)

    @property
    def lora_b_stacked(self) -> tuple[torch.Tensor]:
        """W_up of the routes' slots, [N, 1, d, R]."""
        return (self.w_up[DEFAULT_SLOTS:].unsqueeze(1),)

    def set_mapping(self, punica_wrapper: Any) -> None:
        """Read every token's adapter from vLLM's buffer from now on."""
        super().set_mapping(punica_wrapper)
        routing = route_of_token(punica_wrapper)
        if self.routing.slot_of_token is not routing:
            routing.fill_(-1)
            self.routing.slot_of_token = routing

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        """Write W_down [r, d] and W_up [d, r] of the adapter that vLLM puts into slot `index`."""
        route = self.routes.refresh(index)
        if route is None:
            self.write(DEFAULT_SLOTS + index, None, None, 0)
        else:
            self.write(DEFAULT_SLOTS + index, lora_a, lora_b, route.activation)

    def reset_lora(self, index: int) -> None:
        """Empty slot `index`: what vLLM puts there has no layer in this block."""
        self.routes.refresh(index)
        self.write(DEFAULT_SLOTS + index, None, None, 0)
