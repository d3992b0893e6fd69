"""Model classes whose feed-forward networks end in sites, for every architecture that vLLM knows.

`register_models` puts a lazy entry in front of each of vLLM's own: `unlearn_serve.serving.models:<name>`, which this
module's `__getattr__` turns into a subclass of vLLM's class when it is needed. Parameter names do not change, so
base checkpoints load as before; without our settings the subclass adds nothing.
"""

import logging
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unlearn_kernels import load_cpu_op
from unlearn_serve.errors import NotEnforced, UnsupportedModel
from unlearn_serve.serving import vllm_internals, vllm_lora
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.plugin import NAME
from unlearn_serve.serving.route_table import RouteTable
from unlearn_serve.serving.slots import EnforcedLayers, EnforcedSite, build_sites
from unlearn_serve.sites import SITE_NAME, end_forward_in_site, ends_in_site, find_ffn_modules

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger("vllm.unlearn_serve")

WORKER_EXTENSION = "unlearn_serve.serving.worker.UnlearningWorker"
ATTRIBUTE = "unlearning"
"""Attribute of the model that holds its EnforcedLayers."""

_originals: dict[str, Any] = {}


def register_models() -> None:
    """Register our lazy subclass for every architecture; safe to call again."""
    from vllm import ModelRegistry

    if _originals:
        return
    _originals.update(vllm_internals.registered_models())
    for architecture in _originals:
        ModelRegistry.register_model(architecture, f"{__name__}:{_lazy_name(architecture)}")


def require_registered() -> None:
    """Refuse to go on in a process in which the general plugin has not run.

    Raises:
        NotEnforced: the models of this process are vLLM's plain ones.
    """
    if not _originals:
        raise NotEnforced(
            "the plugin entry point vllm.general_plugins:unlearn_serve did not run in this process, so the plain "
            "model would be served: expected unlearn_serve in VLLM_PLUGINS and an installation that imports"
        )


def _lazy_name(architecture: str) -> str:
    # vLLM caches what it learns about a lazy class by this name: a new vLLM release must not find the old one's facts.
    return f"{architecture}@{version_of_vllm()}"


def version_of_vllm() -> str:
    """Return the installed release of vLLM, whichever wheel it came in."""
    import vllm

    return str(vllm.__version__)


def __getattr__(name: str) -> type[nn.Module]:
    architecture, separator, _ = name.partition("@")
    if not separator:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register_models()
    return with_sites(vllm_internals.load_model_class(_originals[architecture]))


def with_sites(model_class: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a vLLM model class that equips itself when this server has our settings."""

    def __init__(self: Any, *, vllm_config: "VllmConfig", prefix: str = "") -> None:  # noqa: N807
        config = ServingConfig.from_additional_config(vllm_config.additional_config)
        if config is not None and config.routes:
            vllm_lora.keep_compiled(vllm_config, SITE_NAME)
        model_class.__init__(self, vllm_config=vllm_config, prefix=prefix)
        # An inner model of a composite one has a prefix; only the outermost model owns the sites.
        if config is not None and not prefix:
            equip(self, vllm_config, config)

    # The same name, since vLLM reports the architecture by it.
    return type(model_class.__name__, (model_class,), {"__init__": __init__, "__module__": model_class.__module__})


def equip(model: nn.Module, vllm_config: "VllmConfig", config: ServingConfig) -> None:
    """Hang a site on every local block and make the channel's release live, before the first forward pass.

    Mutates `model`. Runs in every worker while the model is built, so even without the HTTP layer no token is ever
    computed without the release.

    Raises:
        NotEnforced: the endpoint plugin or the worker extension is missing, or there is no release and the plain
            model is not allowed.
        UnsupportedModel: a local block has no feed-forward module to hang a site on, or one that returns a rank's part
            of a sum.
    """
    from unlearn_serve.format.fingerprint import fingerprint_base_model

    if NAME not in (named := os.environ.get("VLLM_PLUGINS", "")).split(","):
        # vLLM loads general plugins unasked, endpoint plugins only by name: nobody would follow the channel.
        raise NotEnforced(f"VLLM_PLUGINS: expected {NAME} among the named plugins, got {named!r}")
    if vllm_config.parallel_config.worker_extension_cls != WORKER_EXTENSION:
        got = vllm_config.parallel_config.worker_extension_cls or "none"
        raise NotEnforced(f"--worker-extension-cls: expected {WORKER_EXTENSION}, got {got}")
    config.require_servers(vllm_internals.api_server_index(vllm_config)[1])  # before the weights are read
    layers = _build(model, vllm_config, config)
    layers.base_model = fingerprint_base_model(vllm_internals.base_model_dir(vllm_config))
    start_on_release(layers, config)
    object.__setattr__(model, ATTRIBUTE, layers)


def start_on_release(layers: EnforcedLayers, config: ServingConfig) -> None:
    """Make the release to start on live in one worker's sites; the plain model stays where it may. Mutates `layers`.

    Raises:
        UnlearnServeError: as `find_starting_point`, or the release does not fit.
    """
    from unlearn_serve.serving.starting_point import find_starting_point

    start = find_starting_point(config, layers.base_model)
    if start is not None:
        layers.stage(start.release.digest, start.release.tensors, start.release.manifest.deletion_ids)
        layers.flip(start.release.digest)


def _build(model: nn.Module, vllm_config: "VllmConfig", config: ServingConfig) -> EnforcedLayers:
    local = vllm_internals.local_blocks(vllm_config)
    found = find_ffn_modules(model) if len(local) else {}
    missing = sorted(set(local) - set(found))
    if missing:
        raise UnsupportedModel(f"{type(model).__name__}: no feed-forward module found in blocks {missing}")
    if vllm_config.parallel_config.tensor_parallel_size > 1:
        _require_whole_sums(model, [found[block][1] for block in local])
    if torch.get_default_device().type == "cpu":
        logger.info("unlearn-serve: layers are applied by: %s", load_cpu_op().description)
    layers = build_sites(
        list(local),
        num_blocks=vllm_internals.num_blocks(vllm_config),
        hidden_size=vllm_internals.hidden_size(vllm_config),
        max_rank=config.max_rank,
        max_tokens=vllm_internals.max_tokens_per_step(vllm_config),
        dtype=vllm_config.model_config.dtype,
        routes=_route_slots(vllm_config, config),
        require_coverage=not config.allow_uncovered_routes,
        site_class=_site_class(config),
    )
    if layers.routes is not None:
        _connect(layers, layers.routes, model)
    for block, site in layers.sites.items():
        end_forward_in_site(found[block][1], site)
        layers.hosts[block] = found[block][1]
    return layers


def _require_whole_sums(model: nn.Module, ffns: list[nn.Module]) -> None:
    if any(vllm_internals.leaves_partial_sums(ffn) for ffn in ffns):
        raise UnsupportedModel(
            f"{type(model).__name__}: expected feed-forward networks that return sums over all ranks, got some whose "
            "blocks sum later, so that a layer would act on parts of the sum: serve it with "
            "--tensor-parallel-size 1"
        )


def _route_slots(vllm_config: "VllmConfig", config: ServingConfig) -> int:
    """Return how many adapters can be ready at a time, each of which may be a route; 0 where routes are off."""
    if not config.routes:
        return 0
    slots, targets = vllm_lora.lora_slots(vllm_config), vllm_lora.lora_targets(vllm_config)
    if slots < config.routes:
        got = str(slots) if slots else "no --enable-lora"
        raise NotEnforced(f"--max-loras: expected at least {config.routes}, as many as routes, got {got}")
    if targets is not None and SITE_NAME not in targets:
        raise NotEnforced(f"--lora-target-modules: expected {SITE_NAME} among them, got {', '.join(targets)}")
    return slots


def _site_class(config: ServingConfig) -> type[EnforcedSite]:
    if not config.routes:
        return EnforcedSite
    from unlearn_serve.serving.routed_site import RoutedSite

    return RoutedSite


def _connect(layers: EnforcedLayers, table: RouteTable, model: nn.Module) -> None:
    from unlearn_serve.serving.worker_routes import route_at

    table.adapter_at = lambda index: route_at(model, index)
    for site in layers.sites.values():
        object.__setattr__(site, "routes", table)


def enforced_layers(model: nn.Module) -> EnforcedLayers:
    """Return the sites of a model.

    Raises:
        NotEnforced: the model has none, or something has cut one off since.
    """
    layers = getattr(model, ATTRIBUTE, None)
    if not isinstance(layers, EnforcedLayers):
        raise NotEnforced(
            f"{type(model).__name__} runs without sites: expected the subclass that the general plugin registers; "
            "reinstall unlearn-serve and name unlearn_serve in VLLM_PLUGINS"
        )
    cut_off = [block for block, host in layers.hosts.items() if not ends_in_site(host, layers.sites[block])]
    if cut_off:
        raise NotEnforced(f"the feed-forward modules of blocks {cut_off} no longer end in their sites")
    return layers


__all__ = ["ATTRIBUTE", "WORKER_EXTENSION", "enforced_layers", "equip", "register_models", "require_registered"]
