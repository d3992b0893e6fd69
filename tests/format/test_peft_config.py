"""adapter_config.json: PEFT's options that would change the adapter are refused one by one."""

import json
from pathlib import Path
from typing import Any

import pytest
from format.tiny import (
    load_with,
    peft_config,
)

from unlearn_serve.errors import AdapterFileError

WRONG_CONFIGS = [
    pytest.param({"peft_type": "IA3"}, "peft_type: expected 'LORA', got 'IA3'", id="A3-method"),
    pytest.param(
        {"target_modules": ["q_proj"]}, r"target_modules: expected \['unlearn'\], got \['q_proj'\]", id="A3-q"
    ),
    pytest.param({"target_modules": "all-linear"}, "target_modules: expected", id="A3-all-linear"),
    pytest.param({"target_modules": ["unlearn", "q_proj"]}, "target_modules: expected", id="A3-more-targets"),
    pytest.param({"bias": "all"}, "bias: expected 'none', got 'all'", id="A3-bias"),
    pytest.param({"r": 4}, "r: expected 2, got 4", id="A3-rank"),
    pytest.param({"r": True}, "r: expected 2, got True", id="A3-rank-bool"),
    pytest.param({"lora_alpha": 16}, "lora_alpha: expected 2, got 16", id="A3-alpha"),
    pytest.param({"unlearn_activation": "relu"}, "unlearn_activation: expected 'silu', got 'relu'", id="A3-activation"),
    pytest.param({"use_rslora": True}, "use_rslora: expected this option to be off", id="A4-rslora"),
    pytest.param({"use_dora": True}, "use_dora: expected this option to be off", id="A4-dora"),
    pytest.param({"rank_pattern": {"layers.3": 4}}, "rank_pattern: expected this option to be off", id="A4-ranks"),
    pytest.param({"alpha_pattern": {"layers.3": 4}}, "alpha_pattern: expected this option to be off", id="A4-alphas"),
    pytest.param({"modules_to_save": ["lm_head"]}, "modules_to_save: expected this option to be off", id="A4-modules"),
    pytest.param({"auto_mapping": {"parent_library": "os"}}, "auto_mapping: expected this option", id="A4-import"),
    pytest.param({"layers_to_transform": [1]}, "layers_to_transform: expected this option", id="A4-layers"),
    pytest.param({"made_in_2031": "yes"}, "made_in_2031: expected this option to be off", id="A4-unknown"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_CONFIGS)
def test_other_peft_options_are_refused(adapter: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterFileError, match=rf"^adapter_config.json: {message}"):
        load_with(adapter, config=json.dumps(peft_config(**changes)).encode())


@pytest.mark.parametrize("key", ["peft_type", "r", "lora_alpha", "target_modules", "bias", "unlearn_activation"])
def test_required_peft_options_must_be_there(adapter: Path, key: str) -> None:
    """A3."""
    config = peft_config()
    del config[key]
    with pytest.raises(AdapterFileError, match=rf"^adapter_config.json: {key}: expected .*, got nothing"):
        load_with(adapter, config=json.dumps(config).encode())


def test_config_is_read_as_strictly_as_any_json(adapter: Path) -> None:
    """J2 and J3."""
    with pytest.raises(AdapterFileError, match="key 'r' occurs twice"):
        load_with(adapter, config=json.dumps(peft_config()).encode()[:-1] + b',"r":2}')
    with pytest.raises(AdapterFileError, match="at most 1048576 bytes of JSON"):
        load_with(adapter, config=json.dumps(peft_config(revision="x" * 2**20)).encode())
