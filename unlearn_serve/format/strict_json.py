"""JSON from strangers: parsed strictly, validated with one-line errors, written in one canonical form.

Every JSON document of the format (manifest, channel entry, safetensors header, adapter_config.json) enters through
`parse_json`, so the caps on size and nesting and the ban on duplicate keys hold everywhere.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from unlearn_serve.errors import FormatError, ManifestError

MAX_DEPTH = 32
"""Deepest nesting of arrays and objects that is read; the manifest itself needs 5."""

_STRING = re.compile(r'"(?:[^"\\]++|\\.?)*+(?:"|\Z)', re.DOTALL)
"""A string, also one that never ends; possessive, so that no input makes the search start over at every quote."""

_SHOWN = 60
_LONGEST_KEY = 128


class StrictModel(BaseModel):
    """Base of all documents: no coercion, no unknown keys, no NaN, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """This document in canonical form: what is written, hashed and compared."""
        return canonical_json(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def read(cls, data: bytes, *, source: str, max_bytes: int, error: type[FormatError]) -> Self:
        """Parse and validate `data`, which must be in canonical form.

        Raises:
            FormatError: as `error`; one line that names `source`, the place, what was expected and what was got.
        """
        found = parse_json(data, source=source, max_bytes=max_bytes, error=error)
        _check_schema(cls, found, source, error)
        with one_line_errors(source, error):
            document = cls.model_validate_json(data)
        if document.to_bytes() != data:
            raise error(
                f"{source}: expected canonical JSON (sorted keys, no spaces, UTF-8, numbers and times in their one "
                "form), got other bytes for the same content; let unlearn-serve write it, do not edit it by hand"
            )
        return document


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value: keys sorted by code point, no spaces, UTF-8, shortest round-trip floats."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def parse_json(
    data: bytes, *, source: str, max_bytes: int, error: type[FormatError], allow_nan: bool = False
) -> dict[str, Any]:
    """Parse a JSON object and refuse what a parser would let pass in silence.

    Args:
        data: the document, UTF-8.
        source: how messages name the document.
        max_bytes: longest document that is read.
        error: the class of error to raise.
        allow_nan: accept the non-standard NaN and Infinity (some models' config.json has them).

    Raises:
        FormatError: as `error`: too long, not UTF-8, not JSON, not an object, nested deeper than `MAX_DEPTH`, a key
            twice in one object, NaN or Infinity.
    """
    if len(data) > max_bytes:
        raise error(f"{source}: expected at most {max_bytes} bytes of JSON, got {len(data)}")

    def refuse_constant(name: str) -> NoReturn:
        raise error(f"{source}: expected finite numbers, got {name}")

    def finite(text: str) -> float:
        return number if math.isfinite(number := float(text)) else refuse_constant(f"{text[:20]}...")

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise error(f"{source}: key {shown(key)} occurs twice in one object; every key may occur once")
            found[key] = value
        return found

    try:
        text = data.decode("utf-8")
        if _depth(text) > MAX_DEPTH:
            raise error(f"{source}: expected JSON nested at most {MAX_DEPTH} deep, got deeper nesting")
        value = json.loads(
            text,
            object_pairs_hook=refuse_duplicates,
            parse_float=float if allow_nan else finite,
            parse_constant=None if allow_nan else refuse_constant,
        )
    except ValueError as problem:
        raise error(f"{source}: expected JSON in UTF-8, got {len(data)} bytes that are not: {problem}") from None
    if not isinstance(value, dict):
        raise error(f"{source}: expected a JSON object, got {type(value).__name__}")
    return value


@contextmanager
def one_line_errors(source: str, error: type[FormatError] = ManifestError) -> Iterator[None]:
    """Turn pydantic's many-line `ValidationError` into `error` with one line: the first problem and how many more."""
    try:
        yield
    except ValidationError as problems:
        raise error(f"{source}: {_first_problem(problems)}") from None


def shown(value: object) -> str:
    """`repr(value)`, cut to a length that fits into a one-line message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _check_schema(cls: type[BaseModel], found: dict[str, Any], source: str, error: type[FormatError]) -> None:
    """Name another version of the document before complaining about its keys."""
    field = cls.model_fields.get("schema_")
    if field is not None and found.get("schema") != field.default:
        got = shown(found["schema"]) if "schema" in found else "no schema"
        raise error(
            f"{source}: schema: expected {field.default!r}, got {got}; another version of unlearn-serve wrote it"
        )


def _first_problem(problems: ValidationError) -> str:
    found = problems.errors(include_url=False)
    first = found[0]
    where = ".".join(_plain(part) for part in first["loc"] if part != "[key]")
    got = f", got {shown(first['input'])}"
    match first["type"]:
        case "extra_forbidden":
            what, got = "unknown key", ""
        case "missing":
            what, got = "missing", ""
        case "value_error":
            what, got = first["msg"].removeprefix("Value error, "), ""
        case _:
            what = first["msg"][:1].lower() + first["msg"][1:]
    more = len(found) - 1
    return f"{f'{where}: ' if where else ''}{what}{got}" + (f" (and {more} more problems)" if more else "")


def _plain(part: str | int) -> str:
    """A step of the way to a value: a key may be any text, and must not end the line or forge another."""
    text = str(part)
    return text if text.isprintable() and len(text) <= _LONGEST_KEY else shown(text)


def _depth(text: str) -> int:
    depth = deepest = 0
    for mark in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if mark in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
