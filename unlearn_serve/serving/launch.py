"""`unlearn-serve serve`: builds the `vllm serve` line that does the same through the plugin's entry points."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from unlearn_serve.errors import NotEnforced, UnsupportedModel
from unlearn_serve.serving.admin_key import AdminKeys
from unlearn_serve.serving.config import CONFIG_KEY, ServingConfig
from unlearn_serve.serving.listen_address import ListenAddress
from unlearn_serve.serving.models import WORKER_EXTENSION
from unlearn_serve.serving.plugin import NAME
from unlearn_serve.serving.vllm_lora import RANKS
from unlearn_serve.sites import SITE_NAME

_OURS = ("--additional-config", "--worker-extension-cls")


def vllm_command(model: str, config: ServingConfig, vllm_flags: Sequence[str]) -> list[str]:
    """Return the command line of vLLM's server, to be run with `vllm_environment`.

    All after the module's name is what `vllm serve` takes.

    Raises:
        NotEnforced: a flag among `vllm_flags` would replace one that enforcement needs.
    """
    given = {flag.split("=", 1)[0].replace("_", "-") for flag in vllm_flags}
    for flag in given:
        if flag in _OURS:
            raise NotEnforced(f"{flag}: this flag is set by unlearn-serve; use `vllm serve` directly to combine it")
    settings = json.dumps({CONFIG_KEY: config.model_dump(exclude_defaults=True)}, sort_keys=True)
    ours = ["--additional-config", settings, "--worker-extension-cls", WORKER_EXTENSION]
    ours += _route_flags(config, given)
    return [sys.executable, "-m", "unlearn_serve.serving.vllm_serve", model, *ours, *vllm_flags]


def _route_flags(config: ServingConfig, given: set[str]) -> list[str]:
    """Return vLLM's flags for routes, less those that were given; who enables LoRA chooses its targets."""
    if not config.routes:
        return []
    rank = next((rank for rank in RANKS if rank >= config.max_rank), RANKS[-1])
    cached = max(4 * config.routes, 16)
    flags: dict[str, int | str] = {"--max-loras": config.routes, "--max-cpu-loras": cached, "--max-lora-rank": rank}
    if "--enable-lora" not in given:
        flags |= {"--lora-target-modules": SITE_NAME}
    return [
        "--enable-lora",
        *(str(part) for flag, value in flags.items() if flag not in given for part in (flag, value)),
    ]


def vllm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with this plugin named in VLLM_PLUGINS."""
    named = [name for name in environment.get("VLLM_PLUGINS", "").split(",") if name]
    return {**environment, "VLLM_PLUGINS": ",".join(dict.fromkeys([*named, NAME]))}


def _check_admin(config: ServingConfig) -> None:
    """Raise NotEnforced for what would end the start once the engine is built."""
    keys = AdminKeys(os.environ, inference_keys=filter(None, [os.environ.get("VLLM_API_KEY")]))
    if config.admin_listen is not None:
        keys.require(f"admin_listen {config.admin_listen}")
        ListenAddress.parse(config.admin_listen).check()


def serve(model: str, config: ServingConfig, vllm_flags: Sequence[str]) -> None:
    """Replace this process by `vllm serve`; does not return.

    Raises:
        NotEnforced: the release that the server would start on cannot be served, or the admin routes cannot as they
            should; told here, before the engine is built.
        UnsupportedModel: an encoder-decoder model, which the engine does not serve.
    """
    from unlearn_serve.format.fingerprint import fingerprint_base_model
    from unlearn_serve.serving.starting_point import find_starting_point

    local = Path(model)
    base_model = fingerprint_base_model(local) if local.is_dir() else None
    if base_model is not None and json.loads((local / "config.json").read_bytes()).get("is_encoder_decoder") is True:
        raise UnsupportedModel(
            f"{model}: expected a decoder model, got the encoder-decoder {base_model.architecture}, which vLLM does "
            "not serve; its adapters can be trained, fused and loaded with unlearn_serve.layers.load_adapter"
        )
    find_starting_point(config, base_model)
    _check_admin(config)
    command = vllm_command(model, config, vllm_flags)
    os.execve(command[0], command, vllm_environment(os.environ))
