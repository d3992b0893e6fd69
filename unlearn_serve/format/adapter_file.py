"""An adapter directory: manifest.json, adapter_config.json, adapter_model.safetensors; read with no trust."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from unlearn_serve.errors import AdapterFileError, DigestError, ManifestError
from unlearn_serve.format.atomic import write_atomically
from unlearn_serve.format.manifest import (
    FILE_NAMES,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    DType,
    FileName,
    FileRef,
    Manifest,
    TensorSpec,
    tensor_names,
)
from unlearn_serve.format.peft_config import check_peft_config
from unlearn_serve.format.safetensors_header import TensorEntry, read_header
from unlearn_serve.format.strict_json import one_line_errors, shown
from unlearn_serve.format.two_stacks import TWO_STACKS_SCHEMA, TwoStackManifest

MANIFEST_NAME = "manifest.json"
MAX_HEADER_BYTES = 4 * 2**20
"""Longest header of adapter_model.safetensors; an adapter of 1000 blocks needs a tenth of it."""

_CONFIG: FileName = "adapter_config.json"
_TENSORS: FileName = "adapter_model.safetensors"
_EXPONENTS = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}
"""By type: the integers of its size, and the bits of its exponent."""
_DTYPES: Mapping[str, DType] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, kw_only=True)
class AdapterTensors:
    """The weights of one adapter, by block index; on the CPU, in the adapter's dtype, finite."""

    rank: int
    activation: str
    w_down: dict[int, Tensor]
    """W_down of each site, [r, d]."""
    w_up: dict[int, Tensor]
    """W_up of each site, [d, r]."""


@dataclass(frozen=True, kw_only=True)
class AdapterFiles:
    """An adapter directory as read once: the bytes that were checked are the bytes to publish."""

    manifest: Manifest
    files: Mapping[FileName, bytes]
    tensors: AdapterTensors


def read_adapter(manifest: Manifest, *, config: bytes, tensors: bytes) -> AdapterTensors:
    """Check both adapter files against `manifest` and return the weights.

    Args:
        manifest: a manifest that was validated.
        config: bytes of adapter_config.json.
        tensors: bytes of adapter_model.safetensors.

    Raises:
        DigestError: a file's size or SHA-256 is not the manifest's.
        AdapterFileError: the header, a tensor's name, dtype, shape or values, or the configuration break the format.
    """
    _check_digest(manifest, _CONFIG, config)
    _check_digest(manifest, _TENSORS, tensors)
    check_peft_config(config, manifest.adapter)
    _check_tensors(_entries(tensors, _TENSORS), manifest.adapter.tensors)
    loaded = safetensors.torch.load(tensors)
    for name, tensor in loaded.items():
        if not _is_finite(tensor):
            raise AdapterFileError(f"{_TENSORS}: {name!r}: expected finite values, got NaN or inf; train it again")
    names = {block: tensor_names(site) for block, site in manifest.adapter.sites.items()}
    return AdapterTensors(
        rank=manifest.adapter.rank,
        activation=manifest.adapter.activation,
        w_down={block: loaded[down] for block, (down, _) in sorted(names.items())},
        w_up={block: loaded[up] for block, (_, up) in sorted(names.items())},
    )


def describe_adapter_dir(directory: Path) -> tuple[dict[FileName, FileRef], dict[str, TensorSpec]]:
    """What a manifest has to say of the two adapter files in `directory`: digests and sizes, and the tensors.

    Raises:
        AdapterFileError: a file is missing or too large, or the header breaks the format.
    """
    files: dict[FileName, FileRef] = {}
    for name in FILE_NAMES:
        data = _read_file(directory / name, MAX_FILE_BYTES[name])
        files[name] = FileRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    specs: dict[str, TensorSpec] = {}
    source = str(directory / _TENSORS)
    for tensor, entry in _entries(data, source).items():
        if len(entry.shape) != 2:
            raise AdapterFileError(f"{source}: {shown(tensor)}: expected 2 dimensions, got shape {entry.shape}")
        with one_line_errors(source, AdapterFileError):
            specs[tensor] = TensorSpec(dtype=_DTYPES[entry.dtype], shape=(entry.shape[0], entry.shape[1]))
    return files, specs


def read_adapter_dir(directory: Path) -> tuple[Manifest, AdapterTensors]:
    """The manifest and the validated weights of a local adapter directory.

    Raises:
        ManifestError, DigestError, AdapterFileError: as `Manifest.from_bytes` and `read_adapter`; also a missing file.
    """
    found = _read(directory)
    return found.manifest, found.tensors


def read_adapter_files(directory: Path) -> AdapterFiles:
    """As `read_adapter_dir`, with the bytes of the two adapter files that were checked: what can be published.

    Raises:
        ManifestError: also the adapter of an encoder-decoder model.
    """
    found = _read(directory)
    if isinstance(found.manifest, TwoStackManifest):
        raise ManifestError(
            f"{directory}: the adapter of an encoder-decoder model cannot be published, the engine serves decoders "
            "only; use it with unlearn_serve.layers.load_adapter, or unlearn a decoder model"
        )
    return found


def _read(directory: Path) -> AdapterFiles:
    source = str(directory / MANIFEST_NAME)
    data = _read_file(directory / MANIFEST_NAME, MAX_MANIFEST_BYTES)
    # A mere choice of what to check against: each schema then checks itself.
    kind = TwoStackManifest if f'"schema":"{TWO_STACKS_SCHEMA}"'.encode() in data else Manifest
    manifest = kind.from_bytes(data, source=source)
    files = {name: _read_file(directory / name, MAX_FILE_BYTES[name]) for name in FILE_NAMES}
    tensors = read_adapter(manifest, config=files[_CONFIG], tensors=files[_TENSORS])
    return AdapterFiles(manifest=manifest, files=files, tensors=tensors)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `directory`/manifest.json so that a reader sees the old file or the new one, never a part."""
    write_atomically(directory / MANIFEST_NAME, manifest.to_bytes())


def _read_file(path: Path, limit: int) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device never ends
            raise AdapterFileError(f"{path}: expected a regular file, got something else")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as problem:
        raise AdapterFileError(
            f"{path}: expected a file of an adapter directory, got: {problem.strerror}; "
            "`unlearn-serve train --out DIR` writes one"
        ) from None
    if len(data) > limit:
        raise AdapterFileError(f"{path}: expected at most {limit} bytes, got more")
    if not data:
        raise AdapterFileError(f"{path}: expected content, got an empty file")
    return data


def _is_finite(tensor: Tensor) -> bool:
    """Whether no exponent is all ones.

    By NumPy, in one thread: torch's threads wait for each other, at every tensor, where a server keeps the cores busy.
    """
    kind, exponent = _EXPONENTS[tensor.dtype]
    bits = tensor.view(kind).numpy()
    return not bool(((bits & exponent) == exponent).any())


def _check_digest(manifest: Manifest, name: FileName, data: bytes) -> None:
    expected = manifest.files[name]
    if len(data) != expected.size:
        raise DigestError(f"{name}: expected {expected.size} bytes as the manifest says, got {len(data)}")
    if (digest := hashlib.sha256(data).hexdigest()) != expected.sha256:
        raise DigestError(f"{name}: expected sha256 {expected.sha256} as the manifest says, got {digest}")


def _entries(data: bytes, source: str) -> dict[str, TensorEntry]:
    entries = read_header(data, source=source, max_header=MAX_HEADER_BYTES, error=AdapterFileError)
    for name, entry in entries.items():
        if entry.dtype not in _DTYPES:
            raise AdapterFileError(
                f"{source}: {shown(name)}: expected dtype {', '.join(_DTYPES.values())}, got {entry.dtype}"
            )
    return entries


def _check_tensors(entries: Mapping[str, TensorEntry], specs: Mapping[str, TensorSpec]) -> None:
    if extra := sorted(entries.keys() - specs.keys()):
        raise AdapterFileError(f"{_TENSORS}: extra tensor {shown(extra[0])}, the manifest lists no such ({len(extra)})")
    if missing := sorted(specs.keys() - entries.keys()):
        raise AdapterFileError(f"{_TENSORS}: missing tensor {missing[0]!r} that the manifest lists ({len(missing)})")
    for name, spec in specs.items():
        entry = entries[name]
        if _DTYPES[entry.dtype] != spec.dtype:
            raise AdapterFileError(
                f"{_TENSORS}: {name!r} has dtype {_DTYPES[entry.dtype]}, the manifest says {spec.dtype}"
            )
        if entry.shape != spec.shape:
            raise AdapterFileError(f"{_TENSORS}: {name!r} has shape {entry.shape}, the manifest says {spec.shape}")
