"""YAML that people write for this program: as data only, and a key may occur once."""

from pathlib import Path
from typing import Any

import yaml

from unlearn_serve.errors import FormatError


def read_yaml(path: Path, *, what: str, max_bytes: int) -> tuple[bytes, Any]:
    """Read a file of at most `max_bytes`; returns its bytes and what they say. `what` names its kind in messages.

    Raises:
        FormatError: it cannot be read, is too large, or is not YAML; one line.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise FormatError(f"{path}: expected a readable {what}, got: {problem.strerror}") from None
    if len(data) > max_bytes:
        raise FormatError(f"{path}: expected at most {max_bytes} bytes, got {len(data)}")
    try:
        return data, yaml.load(data, _UniqueKeys)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as problem:
        raise FormatError(f"{path}: expected YAML, got: {' '.join(str(problem).split())}") from None


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep=deep)
        if len(found) != len(node.value):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a key occurs twice")
        return found
