"""B3 and B4: another base model, and folders that hold none, each refused in a line of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from format.tiny import base_model
from format.tiny_model import write_model
from safetensors.torch import save_file

from unlearn_serve.errors import BaseModelMismatch, FormatError
from unlearn_serve.format import fingerprint_base_model, require_same_base


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "OtherForCausalLM"),
        ("num_blocks", 5),
        ("hidden_size", 7),
        ("config_sha256", "d" * 64),
        ("weights_sha256", "d" * 64),
    ],
)
def test_another_base_is_refused_by_field(field: str, value: Any) -> None:
    """B4."""
    with pytest.raises(
        BaseModelMismatch, match=rf"base model 'tiny', this is 'tiny': they differ in {field} \(expected"
    ):
        require_same_base(base_model(), base_model(**{field: value}))


def test_the_name_is_not_compared() -> None:
    """B4."""
    require_same_base(base_model(name="one"), base_model(name="two"))


def index(weight_map: Any) -> str:
    return json.dumps({"weight_map": weight_map})


BROKEN = [
    pytest.param("config.json", None, r"config.json: expected a base model's folder .* download", id="no-config"),
    pytest.param("config.json", "[]", r"config.json: expected a JSON object, got list", id="config-not-object"),
    pytest.param("config.json", '{"a":1,"a":2}', r"config.json: key 'a' occurs twice", id="config-key-twice"),
    pytest.param("config.json", '{"hidden_size":6}', r"architectures: expected .* got None", id="no-architecture"),
    pytest.param(
        "config.json",
        '{"architectures":["A"],"num_layers":"4"}',
        "expected a whole number at one of num",
        id="no-sizes",
    ),
    pytest.param(
        "config.json",
        '{"architectures":["A"],"num_layers":0,"d_model":4}',
        "config.json: num_blocks: input should be greater",
        id="no-blocks",
    ),
    pytest.param("model.safetensors", None, r"expected the weights as \*.safetensors, got none", id="no-weights"),
    pytest.param("model.safetensors", "", r"model.safetensors: expected a readable weight file", id="empty-weights"),
    pytest.param("model.safetensors", "12345", r"model.safetensors: expected at least 8 bytes", id="cut-weights"),
    pytest.param("model.safetensors", "x" * 99, r"a header of at most 104857600 bytes", id="not-safetensors"),
    pytest.param(
        "model.safetensors.index.json", index({"a": "../x.safetensors"}), "a plain .* got '../x", id="B3-traversal"
    ),
    pytest.param(
        "model.safetensors.index.json", index({"a": "/x.safetensors"}), "a plain .* got '/x", id="B3-absolute"
    ),
    pytest.param("model.safetensors.index.json", index({"a": "model.bin"}), "got 'model.bin'", id="B3-pickle"),
    pytest.param("model.safetensors.index.json", index(["a"]), "weight_map: expected an object", id="B3-list"),
    pytest.param("model.safetensors.index.json", index({"a": "b.safetensors"}), "expected a weight file", id="B3-lost"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_model_folder(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    model = write_model(tmp_path / "model")
    if content is None:
        (model / name).unlink()
    else:
        (model / name).write_text(content)
    with pytest.raises(FormatError, match=message) as error:
        fingerprint_base_model(model)
    assert "\n" not in str(error.value)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    """B3."""
    model = write_model(tmp_path / "model")
    (model / "model.safetensors").rename(model / "one.safetensors")
    save_file({"model.embed": torch.zeros(1)}, model / "two.safetensors")
    with pytest.raises(FormatError, match=r"two.safetensors: tensor 'model.embed' is in two weight files"):
        fingerprint_base_model(model)
