"""Reading JSONL files line by line; every complaint names file and line."""

import hashlib
import json
from pathlib import Path
from typing import Any

from unlearn_serve.data.rows import Example, parse_row
from unlearn_serve.errors import DataError
from unlearn_serve.format.manifest import DataRef

MAX_LINE_BYTES = 2**20
"""Longest line that is read: far above any context window, far below what a file that is no JSONL would need."""


def read_examples(path: Path) -> list[Example]:
    """Read a data set: one JSON object a line, in chat, prompt/completion or plain-text form.

    Raises:
        DataError: the file cannot be read, is empty, or has a line that is blank, too long, not UTF-8, not JSON, of no
            known form, without an answer, or that repeats an id.
    """
    examples: list[Example] = []
    lines_by_id: dict[str, int] = {}
    for line, raw in enumerate(_lines(path), start=1):
        source = f"{path}:{line}"
        example = parse_row(_parse(raw, source), source=source, line=line)
        if example.id in lines_by_id:
            raise DataError(
                f"{source}: id {example.id!r} is that of line {lines_by_id[example.id]}; give each row its own"
            )
        lines_by_id[example.id] = line
        examples.append(example)
    if not examples:
        raise DataError(f"{path}: expected at least one row, got an empty file")
    return examples


def data_ref(path: Path) -> DataRef:
    """Digest and number of rows of the data set at `path`: what provenance says of it.

    Raises:
        DataError: the file cannot be read.
    """
    digest = hashlib.sha256()
    rows = 0
    for raw in _lines(path):
        digest.update(raw)
        rows += 1
    return DataRef(sha256=digest.hexdigest(), rows=rows)


def _lines(path: Path) -> list[bytes]:
    """The file's lines, ends kept; a set that training can use fits in memory many times over."""
    try:
        return path.read_bytes().splitlines(keepends=True)
    except OSError as problem:
        raise DataError(f"{path}: expected a readable JSONL file, got: {problem.strerror}") from None


def _parse(raw: bytes, source: str) -> Any:
    if len(raw) > MAX_LINE_BYTES:
        raise DataError(f"{source}: expected at most {MAX_LINE_BYTES} bytes a line, got {len(raw)}; split the row")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        bad = raw[problem.start]
        raise DataError(
            f"{source}: expected UTF-8, got byte 0x{bad:02x} at column {problem.start + 1}; save the file as UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{source}: expected a JSON object, got a blank line; remove it")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{source}: expected one JSON object on the line, got: {problem}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} twice in one object")
    return found
