"""A worker's routes: releases read beside the engine, then handed to vLLM's LoRA manager in one quick call."""

import json
import logging
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import save_file
from torch import nn

from unlearn_kernels import activation_code
from unlearn_serve.errors import SwapError
from unlearn_serve.layers.ffn import SITE_NAME
from unlearn_serve.serving import vllm_lora
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.route_table import Route
from unlearn_serve.serving.routed_site import RoutedSite
from unlearn_serve.serving.slots import EnforcedLayers
from unlearn_serve.serving.staging import Staging
from unlearn_serve.store import Release

logger = logging.getLogger("vllm.unlearn_serve")

_ROUTE = "unlearn_route"
"""Attribute of vLLM's adapter object that makes it a verified release."""


class RouteStatus(TypedDict):
    """What a worker holds of one route."""

    release: str
    slot: int | None
    """The adapter slot it has now; None while it only waits in memory."""
    covered: bool
    """False where its tokens are served under the default, whose deletion ids it does not cover."""


def route_at(model: nn.Module, index: int) -> Route | None:
    """Return the verified release in vLLM's adapter slot `index`; None for anything else."""
    return getattr(vllm_lora.adapter_at(model, index), _ROUTE, None)


class WorkerRoutes:
    """Routes on their way into one worker, and those in it."""

    def __init__(self, model: nn.Module, layers: EnforcedLayers, config: ServingConfig) -> None:
        self._model = model
        self._layers = layers
        self._config = config
        self._names = {
            block: name
            for name, site in vllm_lora.site_names(model, RoutedSite).items()
            for block, mine in layers.sites.items()
            if mine is site
        }
        self._staging: dict[str, Staging] = {}
        self._built: dict[str, Any] = {}

    @property
    def sites(self) -> list[int]:
        """Blocks whose sites vLLM's LoRA manager fills."""
        return sorted(self._names)

    def stage(self, release: str, lora_id: int, path: str) -> None:
        """Start to read `release` as adapter `lora_id`; `path` is what its `LoRARequest` will name."""

        def take(found: Release) -> None:
            self._layers.require_fit(found.digest, found.tensors)
            _write_withdrawn(Path(path))
            self._built[release] = self._build(found, lora_id)

        self._built.pop(release, None)
        self._staging[release] = Staging(release, self._config.store, self._layers.base_model, take)

    def staging(self, release: str) -> tuple[str, str | None]:
        """Return how far `stage` is: busy, ready or failed, and why it failed."""
        staging = self._staging[release]
        return staging.state, staging.error

    def adopt(self, release: str) -> None:
        """Hand the staged `release` to vLLM's LoRA manager.

        Raises:
            SwapError: it is not staged here.
            RuntimeError: the manager's cache is full.
        """
        built = self._built.pop(release, None)
        self._staging.pop(release, None)
        if built is None:
            raise SwapError(f"route {release}: expected it to be staged; stage it first")
        vllm_lora.adopt_lora(self._model, built)

    def drop(self, release: str, lora_id: int) -> bool:
        """Take a route out of this worker, staged or adopted; tells whether vLLM's manager had it."""
        self._staging.pop(release, None)
        self._built.pop(release, None)
        return vllm_lora.drop_lora(self._model, lora_id)

    def status(self) -> list[RouteStatus]:
        """Report what vLLM's manager holds."""
        table = self._layers.routes
        assert table is not None, "a worker with routes has a table"
        held = [(getattr(lora, _ROUTE, None), slot) for lora, slot in vllm_lora.adapters(self._model)]
        return [
            RouteStatus(release=route.release, slot=slot, covered=table.covered(route))
            for route, slot in held
            if route is not None
        ]

    def _build(self, release: Release, lora_id: int) -> Any:
        tensors = release.tensors
        dtype = next(iter(self._layers.sites.values())).w_down.dtype if self._layers.sites else torch.float32
        matrices = {
            self._names[block]: (tensors.w_down[block].to(dtype), tensors.w_up[block].to(dtype))
            for block in tensors.w_down
            if block in self._names
        }
        # vLLM's manager cannot hold an adapter with no weights, as on a pipeline rank that owns none of its blocks.
        matrices = matrices or {SITE_NAME: (torch.zeros(1, 8), torch.zeros(8, 1))}
        lora = vllm_lora.build_lora(lora_id, tensors.rank, matrices)
        route = Route(
            release=release.digest,
            activation=activation_code(tensors.activation),
            deletion_ids=frozenset(release.manifest.deletion_ids),
        )
        setattr(lora, _ROUTE, route)
        return lora


def _write_withdrawn(folder: Path) -> None:
    """Write an adapter without effect where the route's request points.

    vLLM reads it only if a request is still under way when its route has been dropped: it then goes on under the
    default. Without the file the engine would die of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"base_model.model.{SITE_NAME}.lora_{letter}.weight" for letter in "AB"]
    save_file({names[0]: torch.zeros(1, 8), names[1]: torch.zeros(8, 1)}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [SITE_NAME], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
