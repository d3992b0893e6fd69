"""Add, reset, save, load and join whole adapters: one unlearning layer per chosen block."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from unlearn_serve.layers.config import UnlearnConfig
from unlearn_serve.layers.layer import UnlearningLayer
from unlearn_serve.layers.site import attach_sites
from unlearn_serve.sites import SITE_NAME, has_two_stacks

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
_W_DOWN = f".{SITE_NAME}.lora_A.weight"
_SEED_STRIDE = 1_000_003


def add_adapter(
    model: nn.Module,
    *,
    rank: int,
    activation: str = "silu",
    blocks: Iterable[int] | None = None,
    seed: int = 0,
    adapter_name: str = "default",
) -> PeftModel:
    """Put a fresh, trainable adapter (the identity) on `model` and return the PEFT model around it.

    Args:
        model: a transformers model, which gets its sites here, or a `PeftModel`, which gets one more adapter.
        rank: bottleneck width r, the same in every block.
        activation: one of `unlearn_kernels.ACTIVATIONS`.
        blocks: indices of the decoder blocks that get a layer; None means all.
        seed: what W_down is drawn from, see `reset_adapter`.
        adapter_name: PEFT's name for it.

    Raises:
        ValueError: a block that the model does not have, or values that `UnlearnConfig` refuses.
        UnsupportedModel: see `attach_sites`.
    """
    sites = attach_sites(model)
    wanted = sorted(set(sites if blocks is None else blocks))
    if not wanted or not set(wanted) <= set(sites):
        raise ValueError(f"blocks: expected some of 0..{max(sites)}, got {wanted}")
    if wanted != list(sites) and has_two_stacks(model):
        raise ValueError(f"blocks: expected all of an encoder-decoder model's blocks, got {wanted}")
    config = UnlearnConfig(
        r=rank,
        unlearn_activation=activation,
        layers_to_transform=None if wanted == list(sites) else wanted,
        task_type=_task_type(model),
    )
    if isinstance(model, PeftModel):
        model.add_adapter(adapter_name, config)
        model.set_adapter(adapter_name)
    else:
        model = get_peft_model(model, config, adapter_name=adapter_name)
    reset_adapter(model, seed=seed, adapter_name=adapter_name)
    return model


@torch.no_grad()
def reset_adapter(model: PeftModel, *, seed: int, adapter_name: str = "default") -> None:
    """Make an adapter the identity again: W_up = 0, W_down ~ U(-1/sqrt(d), 1/sqrt(d)) (PEFT's kaiming default).

    Each block has its own generator, on the CPU, seeded by `seed` and the block's index: adapters of one seed and rank
    start from the same W_down in every block they share, whichever other blocks they cover and whatever the device.
    Fusion of adapters is better conditioned then.
    """
    for layer in _layers(model, adapter_name):
        down, up = layer.maps(adapter_name)
        generator = torch.Generator().manual_seed(seed * _SEED_STRIDE + layer.block)
        bound = 1.0 / math.sqrt(down.shape[1])
        down.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=generator))
        up.zero_()


def tensors_of(model: PeftModel, adapter_name: str = "default") -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Return block index -> (W_down [r, d], W_up [d, r]): the live parameters, detached, not copies."""
    maps = {layer.block: layer.maps(adapter_name) for layer in _layers(model, adapter_name)}
    return {block: (down.detach(), up.detach()) for block, (down, up) in maps.items()}


def adapter_blocks(model: PeftModel, adapter_name: str = "default") -> tuple[int, ...]:
    """Return the indices of the decoder blocks in which the adapter has a layer."""
    return tuple(layer.block for layer in _layers(model, adapter_name))


def save_adapter(
    model: PeftModel,
    directory: Path,
    adapter_name: str = "default",
    *,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors into `directory`, as PEFT does for "default".

    Unlike PEFT's `save_pretrained` it never asks a hub about the base model, adds no model card, and leaves the path
    of a local base model out of the file, so that equal adapters have equal bytes on every machine.

    Args:
        model: holds the adapter.
        directory: made if missing; files there are replaced.
        adapter_name: which adapter; its name is not written.
        state_dict: gathered parameters where the model itself is sharded.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(
        model, state_dict=state_dict, adapter_name=adapter_name, save_embedding_layers=False
    )
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}
    save_file(tensors, directory / TENSORS_FILE, metadata={"format": "pt"})
    config = UnlearnConfig.from_peft_type(**model.peft_config[adapter_name].to_dict())
    config.inference_mode = True
    name = config.base_model_name_or_path
    config.layers_to_transform = None  # the tensors' names say it, and nothing can then disagree with them
    config.base_model_name_or_path = Path(name).name if name and Path(name).exists() else name
    config.save_pretrained(str(directory))


def load_adapter(
    model: nn.Module, directory: Path, adapter_name: str = "default", *, is_trainable: bool = False
) -> PeftModel:
    """Put the adapter in `directory` on `model` (attaching sites where needed), make it the active one, return it.

    Raises:
        ValueError: not an unlearning adapter's configuration.
        UnsupportedModel: see `attach_sites`.
    """
    attach_sites(model)
    config = UnlearnConfig.from_pretrained(str(directory))
    config.inference_mode = not is_trainable
    # PEFT's index of a layer is ambiguous in two stacks; there an adapter has one in every block.
    config.layers_to_transform = None if has_two_stacks(model) else _blocks_in_file(directory / TENSORS_FILE)
    if not isinstance(model, PeftModel):
        return PeftModel.from_pretrained(
            model, str(directory), adapter_name=adapter_name, config=config, is_trainable=is_trainable
        )
    model.add_adapter(adapter_name, config)
    model.load_adapter(str(directory), adapter_name=adapter_name, is_trainable=is_trainable)
    model.set_adapter(adapter_name, inference_mode=not is_trainable)
    return model


def cat_adapters(model: PeftModel, adapters: Sequence[str], adapter_name: str) -> None:
    """Add an adapter that equals the sum of `adapters`' deltas: bottlenecks stacked, ranks added up.

    Raises:
        ValueError: the adapters differ in activation or blocks, which PEFT would pass over in silence.
    """
    for what, values in (
        ("activation", {name: model.peft_config[name].unlearn_activation for name in adapters}),
        ("blocks", {name: adapter_blocks(model, name) for name in adapters}),
    ):
        if len(set(values.values())) != 1:
            raise ValueError(f"{what}: expected the same for all adapters to stack, got {values}")
    model.add_weighted_adapter(list(adapters), [1.0] * len(adapters), adapter_name, combination_type="cat")


def _task_type(model: nn.Module) -> str | None:
    """PEFT's task: that of a decoder that generates, else none (PEFT would also train a classifier's head)."""
    return "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") and not has_two_stacks(model) else None


def _blocks_in_file(path: Path) -> list[int]:
    with safe_open(path, framework="pt") as file:
        sites = {name.removesuffix(_W_DOWN) for name in file.keys() if name.endswith(_W_DOWN)}  # noqa: SIM118
    return sorted(int(match[-1]) for site in sites if (match := re.findall(r"\.(\d+)\.", site)))


def _layers(model: nn.Module, adapter_name: str) -> Iterator[UnlearningLayer]:
    layers = [m for m in model.modules() if isinstance(m, UnlearningLayer) and adapter_name in m.lora_A]
    if not layers:
        raise ValueError(f"adapter {adapter_name!r}: not on this model")
    yield from sorted(layers, key=lambda layer: layer.block)
