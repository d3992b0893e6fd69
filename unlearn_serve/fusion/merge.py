"""Fold an adapter into the base model's own weights: an ordinary checkpoint that serves at the base model's speed."""

import copy
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from unlearn_serve.errors import FusionError
from unlearn_serve.format import (
    MANIFEST_NAME,
    AdapterTensors,
    fingerprint_base_model,
    read_adapter_dir,
    require_same_base,
)
from unlearn_serve.sites import find_ffn_modules

LAST_LINEAR = "down_proj"
"""The feed-forward network's last linear layer, under the name that Llama and most models since give it."""

MERGED_MANIFEST = f"unlearn_{MANIFEST_NAME}"
"""The adapter's manifest, kept in the merged checkpoint: it says which deletion requests the weights cover."""

_WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")
_PROBE_SCALES = (1.0, 10.0, 100.0, 1000.0)
"""Spread of each random input: what bends only large outputs must show as well."""


def merge_dirs(model: Path, adapter: Path, out: Path) -> Path:
    """Write to `out` the checkpoint of `model` with the layers of `adapter` folded into it.

    W' = (I + W_up W_down) W and b' = (I + W_up W_down) b, with W [d, m] and b [d] the weight and bias of each block's
    `down_proj`; computed in fp32, stored in the base's dtype. Exact, but for that rounding, where the activation is the
    identity and the feed-forward network ends in `down_proj`; all else is refused. What was merged cannot be swapped.

    Args:
        model: folder of the base model's checkpoint.
        adapter: an adapter folder with manifest, of that base model.
        out: a folder that is missing or empty; it appears complete or not at all, with the base's tokenizer and all.

    Returns:
        `out`.

    Raises:
        FusionError: activation, feed-forward network or weights that cannot be folded exactly, or `out` is taken.
        BaseModelMismatch: the adapter belongs to another base model.
        FormatError: `adapter` or `model` is not what its folder should hold.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FusionError(f"{out}: expected a folder that is missing or empty, got one in use; choose another")
    manifest, tensors = read_adapter_dir(adapter)
    if tensors.activation != "identity":
        raise FusionError(
            f"{adapter}: expected activation identity, got {tensors.activation}: with an activation between its maps a "
            "layer is no matrix; serve the release instead, or train it with --activation identity"
        )
    require_same_base(manifest.base_model, fingerprint_base_model(model))
    base = AutoModelForCausalLM.from_pretrained(model, dtype="auto", local_files_only=True)
    fold_into(base, tensors)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        base.save_pretrained(scratch)
        for file in sorted(model.iterdir()):
            if file.is_file() and not file.name.endswith(_WEIGHT_FILES) and not (scratch / file.name).exists():
                shutil.copy(file, scratch)
        shutil.copy(adapter / MANIFEST_NAME, scratch / MERGED_MANIFEST)
        scratch.chmod(0o755)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


@torch.no_grad()
def fold_into(model: PreTrainedModel, tensors: AdapterTensors) -> None:
    """Fold identity layers into the `down_proj` of each block of `model`, which is mutated; all blocks or none.

    Raises:
        FusionError: a block's feed-forward network does not end in a linear `down_proj` of its own, or its weights
            are quantised or shared.
    """
    ffns = find_ffn_modules(model)
    folded: list[tuple[nn.Linear, nn.Linear]] = []
    for block, w_down in tensors.w_down.items():
        path, ffn = ffns[block]
        linear = _last_linear(path, ffn, model)
        wide = copy.deepcopy(linear).float()
        _fold(wide.weight, w_down, tensors.w_up[block])
        if wide.bias is not None:
            _fold(wide.bias, w_down, tensors.w_up[block])
        _require_exact(path, ffn, wide, w_down, tensors.w_up[block])
        folded.append((linear, wide))
    for linear, wide in folded:
        linear.load_state_dict(wide.state_dict())


def _fold(values: Tensor, w_down: Tensor, w_up: Tensor) -> None:
    """Values [d, m] or [d] in fp32 become (I + W_up W_down) values."""
    values += w_up.float() @ (w_down.float() @ values)


def _last_linear(path: str, ffn: nn.Module, model: nn.Module) -> nn.Linear:
    linear = getattr(ffn, LAST_LINEAR, None)
    if type(linear) is not nn.Linear:
        raise FusionError(
            f"{path}: expected a dense feed-forward network with one linear {LAST_LINEAR}, got "
            f"{type(ffn).__name__} with {type(linear).__name__}; serve the release instead"
        )
    if not linear.weight.is_floating_point() or linear.weight.element_size() < 2:
        raise FusionError(
            f"{path}.{LAST_LINEAR}: expected weights in bf16, fp16 or fp32, got {linear.weight.dtype}; "
            "merge into the checkpoint it was quantised from"
        )
    users = sum(parameter is linear.weight for _, parameter in model.named_parameters(remove_duplicate=False))
    if users != 1:
        raise FusionError(
            f"{path}.{LAST_LINEAR}: expected a weight of its own, got one that {users} modules share; "
            "serve the release instead"
        )
    return linear


def _require_exact(path: str, ffn: nn.Module, folded: nn.Linear, w_down: Tensor, w_up: Tensor) -> None:
    """Compare, on random inputs and in fp32, the network that ends in `folded` with U of the network as it was."""
    plain = copy.deepcopy(ffn).float().eval()
    generator = torch.Generator().manual_seed(0)
    first = next(child for child in plain.modules() if isinstance(child, nn.Linear))
    scales = torch.tensor(_PROBE_SCALES)[:, None]
    inputs = (scales * torch.randn(len(_PROBE_SCALES), first.in_features, generator=generator))[None]
    h = plain(inputs)
    setattr(plain, LAST_LINEAR, folded)
    got = plain(inputs)
    if isinstance(h, Tensor) and isinstance(got, Tensor):
        expected = h + (h @ w_down.float().T) @ w_up.float().T
        size = expected.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        if torch.allclose(got / size, expected / size, rtol=0, atol=1e-3):
            return
    raise FusionError(
        f"{path}: {type(ffn).__name__} does something after its {LAST_LINEAR}, so a layer cannot be folded into that "
        "exactly; serve the release instead"
    )
