"""The fingerprint of a base model: two digests that say whether two folders hold the same model.

    config_sha256  = sha256(J(config.json without volatile keys))
    weights_sha256 = sha256(J(list of [name, dtype, shape, sha256(bytes)], one per tensor, sorted by name))

with J(x) = x as JSON with sorted keys, no spaces, non-ASCII characters escaped. So the way the weights
are cut into files does not matter, and one flipped bit does.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from unlearn_serve.errors import BaseModelMismatch, FormatError
from unlearn_serve.format.fingerprint_cache import cached_digest
from unlearn_serve.format.manifest import BaseModelRef
from unlearn_serve.format.safetensors_header import TensorEntry, read_header
from unlearn_serve.format.strict_json import one_line_errors, parse_json, shown

VOLATILE_KEYS = frozenset(
    {
        "transformers_version",
        "_name_or_path",
        "_model_name_or_path",
        "_commit_hash",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "attn_implementation",
        "dtype",  # how to load; the stored dtypes are part of the weights' digest
        "torch_dtype",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    }
)
"""Keys of config.json that do not change which model it is; left out at every level."""

_BLOCK_KEYS = ("num_hidden_layers", "n_layer", "num_layers")
_HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model")
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
_INDEX = "model.safetensors.index.json"
_MAX_CONFIG_BYTES = 4 * 2**20
_MAX_INDEX_BYTES = 64 * 2**20
_MAX_HEADER_BYTES = 100 * 2**20  # what safetensors itself allows


def fingerprint_base_model(model_dir: Path, *, name: str | None = None) -> BaseModelRef:
    """The fingerprint of the base model in `model_dir` (config.json and *.safetensors).

    Reads every weight once: about a second per GB and core. The result is kept in the user's cache folder until a
    weight file changes.

    Args:
        model_dir: a local folder as `save_pretrained` writes it.
        name: how people call the model; the folder's name by default.

    Raises:
        FormatError: config.json or weights are missing or malformed.
    """
    config = parse_json(
        _read(model_dir / "config.json", _MAX_CONFIG_BYTES),
        source=str(model_dir / "config.json"),
        max_bytes=_MAX_CONFIG_BYTES,
        error=FormatError,
        allow_nan=True,
    )
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise FormatError(
            f"{model_dir / 'config.json'}: architectures: expected the model class's name in a list, "
            f"got {shown(architectures)}"
        )
    shards = _shards(model_dir)
    weights_sha256 = cached_digest(shards, lambda: _weights_digest(shards))
    with one_line_errors(str(model_dir / "config.json"), FormatError):
        return BaseModelRef(
            name=name or model_dir.resolve().name,
            architecture=architectures[0],
            num_blocks=_num_blocks(config, model_dir),
            hidden_size=_size_in(config, _HIDDEN_KEYS, model_dir),
            config_sha256=_config_digest(config),
            weights_sha256=weights_sha256,
        )


def require_same_base(expected: BaseModelRef, got: BaseModelRef) -> None:
    """Refuse to combine an adapter with another base model than its own; names are not compared.

    Args:
        expected: the base model in the adapter's manifest.
        got: the base model at hand.

    Raises:
        BaseModelMismatch: names every field that differs.
    """
    differing = []
    for field in ("architecture", "num_blocks", "hidden_size", "config_sha256", "weights_sha256"):
        one, two = getattr(expected, field), getattr(got, field)
        if one != two:
            differing.append(f"{field} (expected {str(one)[:32]}, got {str(two)[:32]})")
    if differing:
        raise BaseModelMismatch(
            f"the adapter belongs to base model {expected.name!r}, this is {got.name!r}: they differ in "
            f"{', '.join(differing)}; use the base model it was trained on, or train it on this one"
        )


def _config_digest(config: Mapping[str, Any]) -> str:
    stable = json.dumps(_without_volatile(config), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(stable.encode("ascii")).hexdigest()


def _without_volatile(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_volatile(inner) for key, inner in value.items() if key not in VOLATILE_KEYS}
    if isinstance(value, list):
        return [_without_volatile(inner) for inner in value]
    return value


def _num_blocks(config: Mapping[str, Any], model_dir: Path) -> int:
    blocks = _size_in(config, _BLOCK_KEYS, model_dir)
    if config.get("is_encoder_decoder") is True and type(decoder := config.get("num_decoder_layers")) is int:
        return blocks + decoder  # of both stacks
    return blocks


def _size_in(config: Mapping[str, Any], keys: tuple[str, ...], model_dir: Path) -> int:
    texts = [config[key] for key in _TEXT_CONFIGS if isinstance(config.get(key), Mapping)]
    for part in (config, *texts):
        for key in keys:
            if type(part.get(key)) is int:
                return int(part[key])
    raise FormatError(f"{model_dir / 'config.json'}: expected a whole number at one of {', '.join(keys)}, got none")


def _shards(model_dir: Path) -> list[Path]:
    """The weight files: those the index names, else model.safetensors, else every *.safetensors."""
    if (model_dir / _INDEX).exists():
        source = str(model_dir / _INDEX)
        data = _read(model_dir / _INDEX, _MAX_INDEX_BYTES)
        index = parse_json(data, source=source, max_bytes=_MAX_INDEX_BYTES, error=FormatError)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise FormatError(f"{source}: weight_map: expected an object from tensor to file, got {shown(weight_map)}")
        for file in sorted(set(weight_map.values())):
            if file != Path(file).name or not file.endswith(".safetensors"):
                raise FormatError(f"{source}: weight_map: expected a plain *.safetensors file name, got {shown(file)}")
        return [model_dir / file for file in sorted(set(weight_map.values()))]
    if (model_dir / "model.safetensors").exists():
        return [model_dir / "model.safetensors"]
    shards = sorted(model_dir.glob("*.safetensors"))
    if not shards:
        raise FormatError(
            f"{model_dir}: expected the weights as *.safetensors, got none; "
            "save_pretrained of transformers writes them in this form"
        )
    return shards


def _weights_digest(shards: list[Path]) -> str:
    tensors: dict[str, tuple[str, list[int], str]] = {}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for shard in shards:
            for name, (entry, digest) in _hash_shard(shard, pool).items():
                if name in tensors:
                    raise FormatError(f"{shard}: tensor {shown(name)} is in two weight files; remove one of them")
                tensors[name] = (entry.dtype, list(entry.shape), digest)
    listing = [[name, *tensors[name]] for name in sorted(tensors)]
    text = json.dumps(listing, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _hash_shard(shard: Path, pool: ThreadPoolExecutor) -> dict[str, tuple[TensorEntry, str]]:
    try:
        with shard.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            with memoryview(mapped) as data:
                entries = read_header(data, source=str(shard), max_header=_MAX_HEADER_BYTES, error=FormatError)
                digests = list(pool.map(lambda entry: _hash_range(data, entry), entries.values()))
            return {name: (entry, digest) for (name, entry), digest in zip(entries.items(), digests, strict=True)}
    except (OSError, ValueError) as problem:  # ValueError: an empty file cannot be mapped
        raise FormatError(f"{shard}: expected a readable weight file, got: {problem}") from None


def _hash_range(data: memoryview, entry: TensorEntry) -> str:
    with data[entry.begin : entry.end] as part:
        return hashlib.sha256(part).hexdigest()


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as problem:
        raise FormatError(
            f"{path}: expected a base model's folder on this machine, got: {problem.strerror}; "
            "download the model first and give its folder"
        ) from None
