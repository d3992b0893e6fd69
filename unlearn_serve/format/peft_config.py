"""adapter_config.json: PEFT's LoRA configuration, held to what an unlearning adapter means.

PEFT has many options that change what the two matrices of a site compute. None of them is part of the format, so
each must be off; an option that this version does not know must be off too.
"""

from collections.abc import Mapping
from typing import Any

from unlearn_serve.errors import AdapterFileError
from unlearn_serve.format.manifest import MAX_FILE_BYTES, AdapterSpec, FileName
from unlearn_serve.format.strict_json import parse_json, shown

_SOURCE: FileName = "adapter_config.json"

_WITHOUT_EFFECT = {
    "base_model_name_or_path",  # the manifest's fingerprint says which base model
    "inference_mode",
    "init_lora_weights",  # acts before training only
    "lora_dropout",  # acts in training only
    "megatron_core",  # read only with megatron_config, which must be off
    "peft_version",
    "qalora_group_size",  # read only with use_qalora, which must be off
    "revision",
    "task_type",
}


def check_peft_config(data: bytes, adapter: AdapterSpec) -> None:
    """Check the bytes of adapter_config.json against what the manifest says of the adapter.

    Raises:
        AdapterFileError: not strict JSON; another method than LoRA; rank, alpha, activation or target differ; an
            option is on that would change what the adapter computes.
    """
    config = parse_json(data, source=_SOURCE, max_bytes=MAX_FILE_BYTES[_SOURCE], error=AdapterFileError)
    required: Mapping[str, Any] = {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.rank,  # scaling lora_alpha / r is 1
        "target_modules": ["unlearn"],
        "bias": "none",
        "unlearn_activation": adapter.activation,
    }
    for key, expected in required.items():
        if key not in config:
            raise AdapterFileError(f"{_SOURCE}: {key}: expected {expected!r}, got nothing")
        if config[key] != expected or type(config[key]) is not type(expected):
            raise AdapterFileError(f"{_SOURCE}: {key}: expected {expected!r}, got {shown(config[key])}")
    for key, value in config.items():
        if value and key not in required and key not in _WITHOUT_EFFECT:
            raise AdapterFileError(
                f"{_SOURCE}: {key}: expected this option to be off (it would change what the adapter computes), "
                f"got {shown(value)}"
            )
