"""Loading and saving models of the task's kinds, and finding in them the maps that editors and LoRA change."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from benchmarks.paper.task import Kind, Task
from unlearn_serve.data.forms import LOADERS
from unlearn_serve.errors import UnsupportedModel
from unlearn_serve.sites import find_ffn_modules


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_model(
    folder: Path, kind: Kind, *, frozen: bool, bf16: bool = False, classes: dict[str, int] | None = None
) -> Any:
    """Load a checkpoint in evaluation mode.

    Args:
        folder: the checkpoint.
        kind: decides the head.
        frozen: no parameter asks for a gradient.
        bf16: weights in bfloat16, else in float32 whatever the file holds.
        classes: `label2id` of a head that the checkpoint does not have yet; it is drawn from torch's generator.
    """
    settings: dict[str, Any] = {}
    if classes is not None:
        settings = {"label2id": classes, "id2label": {number: name for name, number in classes.items()}}
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = LOADERS[kind].from_pretrained(folder, dtype=dtype, local_files_only=True, **settings)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return model.to(device).eval().requires_grad_(not frozen)


def load_original(task: Task, *, frozen: bool = True) -> Any:
    """Load `task.original`; in bf16 where the task says so and the model is frozen."""
    return load_model(task.original, task.kind, frozen=frozen, bf16=frozen and task.precision == "bf16")


def classes_of(config: Any) -> dict[str, int]:
    """A classifier's `label2id`, from its config's `id2label`, which alone is always there."""
    return {name: int(number) for number, name in (config.id2label or {}).items()}


def new_classes(task: Task) -> dict[str, int] | None:
    """The classes that a fresh head on `task.base` needs; None where no head is to be made."""
    if task.kind != "classes":
        return None
    return classes_of(AutoConfig.from_pretrained(task.original, local_files_only=True))


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Write a checkpoint and return its folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def weight_bytes(*folders: Path) -> int:
    """Bytes of all tensors' files (*.safetensors) under the folders."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*.safetensors"))


def fresh_folder(task: Task, name: str) -> Path:
    """The method's folder, emptied."""
    folder = task.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token, or the one that ends a sequence where there is none: masked, so it does not matter which."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def ffn_output_maps(model: nn.Module) -> dict[int, tuple[str, nn.Module]]:
    """Block index -> (path, module) of the linear map that the block's feed-forward network ends in (`down_proj`).

    Raises:
        UnsupportedModel: a network does not have exactly one map onto the hidden size from another width.
    """
    hidden = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]  # nn.Module's
    found = {}
    for block, (path, ffn) in find_ffn_modules(model).items():
        maps = [(name, child) for name, child in ffn.named_modules() if _ends_in(child, hidden)]
        if len(maps) != 1:
            raise UnsupportedModel(f"{path}: expected one linear map onto {hidden} features, got {len(maps)}")
        name, child = maps[0]
        found[block] = (f"{path}.{name}", child)
    return found


def _ends_in(module: nn.Module, hidden: int) -> bool:
    if isinstance(module, nn.Linear):
        return module.out_features == hidden != module.in_features
    return isinstance(module, Conv1D) and module.weight.shape[1] == hidden != module.weight.shape[0]
