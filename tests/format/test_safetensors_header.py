"""adapter_model.safetensors made by hand, and each way to lie in its header refused."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from format.tiny import (
    HIDDEN,
    RANK,
    SITES,
    load_with,
    safetensors_file,
)

from unlearn_serve.errors import AdapterFileError
from unlearn_serve.format import (
    tensor_names,
)
from unlearn_serve.format.adapter_file import MAX_HEADER_BYTES

DOWN, UP = tensor_names(SITES[3])
OTHER_DOWN, OTHER_UP = tensor_names(SITES[1])
BYTES = RANK * HIDDEN * 4


def header(**changes: Any) -> dict[str, Any]:
    """A sound header of the four tensors, in the order of their bytes, with some entries changed."""
    names = {"other_down": OTHER_DOWN, "other_up": OTHER_UP, "down": DOWN, "up": UP}
    entries: dict[str, Any] = {}
    for place, (key, name) in enumerate(names.items()):
        shape = [RANK, HIDDEN] if key.endswith("down") else [HIDDEN, RANK]
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [place * BYTES, (place + 1) * BYTES]}
        entries[name] = entry | changes.pop(key, {})
    return entries | changes


BODY = struct.pack("<24f", *range(24)) * 2

WRONG_FILES = [
    pytest.param(b"\x00" * 7, "expected at least 8 bytes of header length, got 7", id="A5-short"),
    pytest.param(safetensors_file(b"{}", length=3), "expected a header of 3 bytes, got 2; .* truncated", id="A5-cut"),
    pytest.param(safetensors_file(b"{}", length=2**63), "expected a header of at most 4194304 bytes", id="J2-header"),
    pytest.param(
        safetensors_file(b" " * MAX_HEADER_BYTES + b"{}"),
        "a header of at most .* one that says 4194306",
        id="J2-header-true",
    ),
    pytest.param(safetensors_file(b""), "header: expected JSON in UTF-8, got 0 bytes", id="J1-header-empty"),
    pytest.param(safetensors_file(b"\x80\x02."), "header: expected JSON in UTF-8", id="J1-header-pickle"),
    pytest.param(
        safetensors_file(json.dumps(header()).encode()[:-1] + f',"{UP}":{{}}}}'.encode(), BODY),
        "header: key .* occurs twice in one object",
        id="J3-header",
    ),
    pytest.param(
        safetensors_file(b'{"a":' + b"[" * 99 + b"]" * 99 + b"}"), "header: .* nested at most", id="J4-header"
    ),
    pytest.param(
        safetensors_file({"a": 1}), "tensor 'a': expected exactly dtype, shape and data_offsets", id="A6-number"
    ),
    pytest.param(safetensors_file(header(up={"x": 1}), BODY), "expected exactly dtype, shape", id="A6-extra-key"),
    pytest.param(
        safetensors_file(header(__metadata__={"format": 1}), BODY), "__metadata__: expected", id="A6-metadata"
    ),
    pytest.param(safetensors_file(header(__metadata__="pt"), BODY), "__metadata__: expected", id="A6-metadata-text"),
    pytest.param(safetensors_file(header(up={"dtype": "F128"}), BODY), "a dtype that safetensors knows", id="A6-dtype"),
    pytest.param(
        safetensors_file(header(up={"dtype": ["F32"]}), BODY), "a dtype that safetensors knows", id="A6-dtypes"
    ),
    pytest.param(
        safetensors_file(header(up={"shape": [-6, -2]}), BODY), "shape: expected whole numbers", id="A6-minus"
    ),
    pytest.param(safetensors_file(header(up={"shape": [6, True]}), BODY), "shape: expected whole", id="A6-bool"),
    pytest.param(safetensors_file(header(up={"shape": [6.0, 2]}), BODY), "shape: expected whole", id="A6-float"),
    pytest.param(safetensors_file(header(up={"shape": [2**64, 2]}), BODY), "shape: expected whole", id="A6-overflow"),
    pytest.param(safetensors_file(header(up={"data_offsets": [192, 144]}), BODY), "begin <= end", id="A6-backwards"),
    pytest.param(safetensors_file(header(up={"data_offsets": [144]}), BODY), "begin <= end", id="A6-one-offset"),
    pytest.param(
        safetensors_file(header(up={"data_offsets": [144, 191]}), BODY),
        r"data_offsets: expected 48 bytes for shape \(6, 2\) of F32, got 47",
        id="A7",
    ),
    pytest.param(
        safetensors_file(header(up={"shape": [2**40, 2**40]}), BODY), "data_offsets: expected 4835703278", id="A7-huge"
    ),
    pytest.param(
        safetensors_file(header(up={"data_offsets": [96, 144]}), BODY[:144]),
        "overlaps the one before it by 48",
        id="A8",
    ),
    pytest.param(
        safetensors_file(header(up={"data_offsets": [140, 188]}), BODY),
        "overlaps the one before it by 4 bytes",
        id="A8-4",
    ),
    pytest.param(
        safetensors_file(header(up={"data_offsets": [148, 196]}), BODY + b"1234"),
        "4 bytes before tensor .* belong to no tensor",
        id="A9-gap",
    ),
    pytest.param(
        safetensors_file(header(), BODY + b"1"), "1 bytes after the last tensor belong to no", id="A9-trailing"
    ),
    pytest.param(
        safetensors_file(header(), BODY[:-1]), "bytes for the tensors listed, .* the file is truncated", id="A9-cut"
    ),
]


@pytest.mark.parametrize(("data", "message"), WRONG_FILES)
def test_malformed_safetensors_is_refused(adapter: Path, data: bytes, message: str) -> None:
    with pytest.raises(AdapterFileError, match=rf"^adapter_model.safetensors.*{message}") as error:
        load_with(adapter, tensors=data)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_header_by_hand_is_sound(adapter: Path) -> None:
    """So the files above fail for what was changed, and metadata is allowed."""
    load_with(adapter, tensors=safetensors_file(header(__metadata__={"format": "pt"}), BODY))
