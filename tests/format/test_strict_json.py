"""Rules J1 to J5: what no JSON document of the format may be."""

import pytest

from unlearn_serve.errors import ManifestError
from unlearn_serve.format.strict_json import MAX_DEPTH, parse_json


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


REFUSED = [
    pytest.param(b"", r"expected JSON in UTF-8, got 0 bytes", id="J1-empty"),
    pytest.param(b"{", r"expected JSON in UTF-8", id="J1-truncated"),
    pytest.param(b"{} {}", r"expected JSON in UTF-8.*Extra data", id="J1-two-documents"),
    pytest.param(b"[]", r"expected a JSON object, got list", id="J1-array"),
    pytest.param(b"\xef\xbb\xbf{}", r"expected JSON in UTF-8.*BOM", id="J1-byte-order-mark"),
    pytest.param('{"a":"ü"}'.encode("latin-1"), r"expected JSON in UTF-8.*'utf-8' codec", id="J1-latin-1"),
    pytest.param("{}".encode("utf-16"), r"expected JSON in UTF-8.*'utf-8' codec", id="J1-utf-16"),
    pytest.param(b'{"a":"' + b"x" * 2000 + b'"}', r"expected at most 1024 bytes of JSON, got 2008", id="J2"),
    pytest.param(b'{"a":1,"a":1}', r"key 'a' occurs twice in one object", id="J3"),
    pytest.param(b'{"b":[{"a":1,"\\u0061":2}]}', r"key 'a' occurs twice in one object", id="J3-escaped-inside"),
    pytest.param(nested(MAX_DEPTH + 1), r"nested at most 32 deep", id="J4"),
    pytest.param(b'{"a":' * 150 + b"1" + b"}" * 150, r"nested at most 32 deep", id="J4-objects"),
    pytest.param(b'{"a":NaN}', r"expected finite numbers, got NaN", id="J5-nan"),
    pytest.param(b'{"a":-Infinity}', r"expected finite numbers, got -Infinity", id="J5-inf"),
    pytest.param(b'{"a":' + b"9" * 900 + b"e9}", r"expected finite numbers", id="J5-overflow"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED)
def test_refused_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=rf"^doc: .*{message}") as error:
        parse_json(data, source="doc", max_bytes=1024, error=ManifestError)
    assert "\n" not in str(error.value)


def test_brackets_within_texts_are_no_nesting() -> None:
    data = b'{"a":"' + b"[{" * 100 + b'\\"' + b"[" * 100 + b'"}'
    assert parse_json(data, source="doc", max_bytes=1024, error=ManifestError)["a"].endswith("[")


def test_deepest_allowed_nesting_is_read() -> None:
    assert parse_json(nested(MAX_DEPTH), source="doc", max_bytes=1024, error=ManifestError)


def test_many_brackets_do_not_exhaust_the_stack() -> None:
    with pytest.raises(ManifestError, match="nested at most"):
        parse_json(b'{"a":' + b"[" * 200_000, source="doc", max_bytes=2**20, error=ManifestError)
