"""A worker's routes: releases read beside the engine, then handed to vLLM's LoRA manager in one quick call."""

import json
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import save
from torch import nn

from unlearn_kernels import activation_code
from unlearn_serve.errors import NotEnforced, SwapError
from unlearn_serve.format.atomic import write_atomically
from unlearn_serve.serving import vllm_lora
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.live import PLAIN
from unlearn_serve.serving.route_table import Route
from unlearn_serve.serving.routed_site import RoutedSite
from unlearn_serve.serving.slots import EnforcedLayers
from unlearn_serve.serving.staging import Staging
from unlearn_serve.sites import SITE_NAME
from unlearn_serve.store import Release

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
        self._staging: dict[int, Staging | None] = {}
        self._built: dict[int, Any] = {}

    @property
    def sites(self) -> list[int]:
        """Blocks whose sites vLLM's LoRA manager fills."""
        return sorted(self._names)

    def stage(self, release: str, lora_id: int, path: str) -> None:
        """Start to read `release` as adapter `lora_id`, a new number; `path` is what its `LoRARequest` will name.

        Raises:
            NotEnforced: `release` is the plain model, and it is not allowed.
        """

        def take(found: Release) -> None:
            self._layers.require_fit(found.digest, found.tensors)
            _write_withdrawn(Path(path))
            built = self._build(found, lora_id)
            if lora_id in self._staging:  # not dropped in the meantime
                self._built[lora_id] = built

        if release == PLAIN:
            if not self._config.allow_plain:
                raise NotEnforced("the plain model is served only with --allow-plain")
            _write_withdrawn(Path(path))
            self._built[lora_id] = _with_layers(lora_id, 1, {}, Route(release=PLAIN, activation=0))
            self._staging[lora_id] = None
            return
        self._staging[lora_id] = None  # before the thread looks for it
        self._staging[lora_id] = Staging(release, self._config, self._layers.base_model, take)

    def staging(self, lora_id: int) -> tuple[str, str | None]:
        """Return how far `stage` is: busy, ready or failed, and why it failed."""
        staging = self._staging[lora_id]
        return (staging.state, staging.error) if staging else ("ready", None)

    def adopt(self, lora_id: int) -> None:
        """Hand a staged adapter to vLLM's LoRA manager.

        Raises:
            SwapError: it is not staged here.
            RuntimeError: the manager's cache is full.
        """
        built = self._built.pop(lora_id, None)
        self._staging.pop(lora_id, None)
        if built is None:
            raise SwapError(f"adapter {lora_id}: expected it to be staged; stage it first")
        vllm_lora.adopt_lora(self._model, built)

    def drop(self, lora_id: int) -> bool:
        """Take an adapter out of this worker, staged or adopted; tells whether vLLM's manager had it."""
        self._staging.pop(lora_id, None)
        self._built.pop(lora_id, None)
        return vllm_lora.drop_lora(self._model, lora_id)

    def unverified(self) -> list[int]:
        """Return the numbers of adapters that hold unlearning layers and are no releases that were verified here."""
        names = set(self._names.values())
        held = [lora for lora, _ in vllm_lora.adapters(self._model) if getattr(lora, _ROUTE, None) is None]
        return [lora.id for lora in held if names & set(lora.loras)]

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
        route = Route(
            release=release.digest,
            activation=activation_code(tensors.activation),
            deletion_ids=frozenset(release.manifest.deletion_ids),
        )
        return _with_layers(lora_id, tensors.rank, matrices, route)


def _with_layers(lora_id: int, rank: int, layers: dict[str, tuple[torch.Tensor, torch.Tensor]], route: Route) -> Any:
    # vLLM's manager cannot hold an adapter with no weights: the plain model's, or one whose blocks are on other ranks.
    lora = vllm_lora.build_lora(lora_id, rank, layers or {SITE_NAME: (torch.zeros(1, 8), torch.zeros(8, 1))})
    setattr(lora, _ROUTE, route)
    return lora


def _write_withdrawn(folder: Path) -> None:
    """Write an adapter without effect where the route's request points.

    vLLM reads it only if a request is still under way when its route has been dropped: it then goes on under the
    default. Without the file the engine would die of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"base_model.model.{SITE_NAME}.lora_{letter}.weight" for letter in "AB"]
    weights = save({names[0]: torch.zeros(1, 8), names[1]: torch.zeros(8, 1)})
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [SITE_NAME], "bias": "none"}
    write_atomically(folder / "adapter_model.safetensors", weights)
    write_atomically(folder / "adapter_config.json", json.dumps(config).encode())
