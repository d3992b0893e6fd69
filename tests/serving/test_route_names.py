"""Names of routes: every spelling of a release becomes one canonical name, and no other name is taken for a route."""

from typing import Any

import pytest

from unlearn_serve.errors import NotEnforced, ReleaseNotFound, StoreError
from unlearn_serve.serving.route_names import RouteNames

A, B = "a" * 64, "a" * 20 + "b" * 44


class Releases:
    """The one call of a store that names need; counts it."""

    def __init__(self, *digests: str) -> None:
        self.digests = digests
        self.reads = 0

    def resolve(self, prefix: str) -> str:
        self.reads += 1
        found = [digest for digest in self.digests if digest.startswith(prefix)]
        if not found:
            raise ReleaseNotFound(prefix)
        if len(found) > 1:
            raise StoreError(f"{prefix} is ambiguous")
        return found[0]


def names(**aliases: str) -> RouteNames:
    return RouteNames(["base", "org/base@v2"], aliases)


@pytest.mark.parametrize(
    ("model", "label"),
    [
        (f"base@{A}", A),
        (f"org/base@v2@{A}", A),
        ("base@case", "case"),
        ("case", "case"),
        ("base", None),
        ("org/base@v2", None),
        ("sql-lora", None),
        (f"other@{A}", None),
        (A, None),
        ("base@", ""),
    ],
)
def test_what_names_a_route(model: str, label: str | None) -> None:
    assert names(case=A).label(model) == label


def test_every_spelling_has_one_canonical_name() -> None:
    """The bug: two names for one release are two entries in the prefix cache, or one name for two releases is one."""
    made, store = names(case=A[:12]), Releases(A)
    spellings = [A, A[:12], A[:40], "case"]

    assert {made.canonical(made.digest(label, store)) for label in spellings} == {f"base@{A}"}  # type: ignore[arg-type]


def test_a_full_digest_is_not_looked_up_and_a_prefix_once() -> None:
    made, store = names(), Releases(A)
    for label in (A, A[:12], A[:12]):
        made.digest(label, store)  # type: ignore[arg-type]

    assert store.reads == 1


@pytest.mark.parametrize("label", ["", "case", A[:11], A.upper(), A + "a", "../../etc", "plain"])
def test_what_is_no_label_is_not_found(label: str) -> None:
    with pytest.raises(ReleaseNotFound, match="expected an alias of this server or 12 to 64 hexadecimal digits"):
        names().digest(label, Releases(A))  # type: ignore[arg-type]


def test_an_ambiguous_prefix_is_refused() -> None:
    with pytest.raises(StoreError, match="ambiguous"):
        names().digest("a" * 12, Releases(A, B))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ({"base": A}, "--route-alias: expected a name without @ other than the model's, got 'base'"),
        ({"x@y": A}, "--route-alias: expected a name without @"),
        ({"": A}, "--route-alias: expected a name without @"),
        ({"case": "abc"}, "--route-alias case: expected 12 to 64 hexadecimal digits, got 'abc'"),
    ],
)
def test_bad_aliases_are_refused_at_start(aliases: dict[str, Any], message: str) -> None:
    with pytest.raises(NotEnforced, match=message):
        names(**aliases)
