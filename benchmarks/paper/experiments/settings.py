"""Settings as JSON values, so that a stage's digest covers them."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


def as_json(value: Any) -> Any:
    """Dataclasses and mappings as dicts, sequences as lists, paths by name; other values as they are."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(one) for one in value]
    if isinstance(value, Path):
        return value.name
    return value
