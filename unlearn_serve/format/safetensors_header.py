"""The header of a safetensors file, read as if an attacker wrote it.

Layout: 8 bytes little-endian length n, n bytes of JSON, then the tensors' bytes. The JSON maps each name to dtype,
shape and data_offsets, relative to the end of the header; `__metadata__` maps text to text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearn_serve.errors import FormatError
from unlearn_serve.format.strict_json import parse_json, shown

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits per element of every dtype that safetensors writes."""

MAX_DIMENSIONS = 8
"""Most dimensions of a tensor; without a limit their product is a number that takes seconds to compute, or to print."""

_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of a file: its dtype as safetensors spells it, its shape, and where its bytes are in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """First byte, from the start of the file."""
    end: int
    """One past the last byte, from the start of the file."""


def read_header(
    data: bytes | memoryview, *, source: str, max_header: int, error: type[FormatError]
) -> dict[str, TensorEntry]:
    """The tensors of the safetensors file `data`, in order of their bytes.

    Args:
        data: the whole file.
        source: how messages name the file.
        max_header: longest header that is read, in bytes.
        error: the class of error to raise.

    Raises:
        FormatError: as `error`: truncated, header too long, not strict JSON, a malformed entry, tensors that overlap,
            leave a gap, or do not fill the file exactly.
    """
    if len(data) < 8:
        raise error(f"{source}: expected at least 8 bytes of header length, got {len(data)}; the file is truncated")
    length = int.from_bytes(data[:8], "little")
    if length > max_header:
        raise error(f"{source}: expected a header of at most {max_header} bytes, got one that says {length}")
    if 8 + length > len(data):
        raise error(f"{source}: expected a header of {length} bytes, got {len(data) - 8}; the file is truncated")
    header = parse_json(bytes(data[8 : 8 + length]), source=f"{source} header", max_bytes=max_header, error=error)
    _check_metadata(header.pop("__metadata__", {}), source, error)
    entries = {name: _entry(name, spec, 8 + length, source, error) for name, spec in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_layout(ordered, 8 + length, len(data), source, error)
    return ordered


def _check_metadata(metadata: object, source: str, error: type[FormatError]) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise error(f"{source}: __metadata__: expected an object of texts, got {shown(metadata)}")


def _entry(name: str, spec: Any, data_start: int, source: str, error: type[FormatError]) -> TensorEntry:
    where = f"{source}: tensor {shown(name)}"
    if not isinstance(spec, dict) or spec.keys() != _ENTRY_KEYS:
        raise error(f"{where}: expected exactly dtype, shape and data_offsets, got {shown(spec)}")
    dtype, shape, offsets = spec["dtype"], spec["shape"], spec["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise error(f"{where}: expected a dtype that safetensors knows, got {shown(dtype)}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise error(
            f"{where}: shape: expected whole numbers of at least 0, {MAX_DIMENSIONS} at most, got {shown(shape)}"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise error(f"{where}: data_offsets: expected [begin, end] with 0 <= begin <= end, got {shown(offsets)}")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise error(
            f"{where}: data_offsets: expected {bits // 8} bytes for shape {shown(tuple(shape))} of {dtype}, "
            f"got {offsets[1] - offsets[0]}"
        )
    return TensorEntry(dtype=dtype, shape=tuple(shape), begin=data_start + offsets[0], end=data_start + offsets[1])


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _check_layout(
    entries: Mapping[str, TensorEntry], data_start: int, file_size: int, source: str, error: type[FormatError]
) -> None:
    at = data_start
    for name, entry in entries.items():
        if entry.begin < at:
            raise error(f"{source}: tensor {shown(name)} overlaps the one before it by {at - entry.begin} bytes")
        if entry.begin > at:
            raise error(f"{source}: {entry.begin - at} bytes before tensor {shown(name)} belong to no tensor")
        at = entry.end
    if at > file_size:
        raise error(f"{source}: expected {at} bytes for the tensors listed, got {file_size}; the file is truncated")
    if at < file_size:
        raise error(f"{source}: {file_size - at} bytes after the last tensor belong to no tensor")
