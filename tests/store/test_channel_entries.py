"""C2, C3 and C6: what lies in a channel's folder is read strictly, what does not belong is passed over."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from format.tiny import edited
from store.moves import entry_file, promote, rollback

from unlearn_serve.errors import (
    FormatError,
)
from unlearn_serve.store import Store


def test_foreign_objects_are_no_generations(store: Store, releases: list[str]) -> None:
    """C3."""
    entry = promote(store, releases[0])
    folder = entry_file(store, 1).parent
    for name in ("2.json", f"{3:020d}.json.bak", f"{4:021d}.json", "notes.txt"):
        (folder / name).write_text("{}")
    (folder / "nested").mkdir()
    (folder / "nested" / f"{9:020d}.json").write_text("{}")
    (folder.parent / "Not A Channel").mkdir()
    assert store.channel("production") == entry
    assert store.channels() == ["production"]
    assert promote(store, releases[1]).generation == 2


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry.update({key: value})


BROKEN = [
    pytest.param(put("schema", "unlearn-serve/channel/1"), "schema: expected 'unlearn-serve/channel/2', got", id="C2"),
    pytest.param(put("channel", "staging"), "expected the entry of this place, got 'staging' 2", id="C2-channel"),
    pytest.param(put("generation", 3), "expected the entry of this place, got 'production' 3", id="C2-generation"),
    pytest.param(put("channel", "../x"), "channel: string should match pattern", id="C1-stored"),
    pytest.param(put("generation", 0), "generation: input should be greater", id="C3-zero"),
    pytest.param(put("release", "../../x"), "release: string should match pattern", id="R7-stored"),
    pytest.param(put("action", "delete"), "action: input should be 'promote' or 'rollback'", id="C6-action"),
    pytest.param(put("restores_generation", 1), "restores_generation: expected null for a promote", id="C6-promote"),
    pytest.param(lambda entry: entry.update(action="rollback"), "expected an earlier generation", id="C6-none"),
    pytest.param(
        lambda entry: entry.update(action="rollback", restores_generation=2), "expected an earlier", id="C6-itself"
    ),
    pytest.param(put("actor", "a\nb"), "actor: expected one line of printable", id="C8-stored"),
    pytest.param(put("uncovers", ["a"]), "reason: expected one where deletion requests are no", id="C10-no-reason"),
    pytest.param(put("uncovers", ["b", "a"]), "uncovers: expected sorted ids, each once", id="C10-unsorted"),
    pytest.param(put("uncovers", ["../a"]), "uncovers.0: string should match pattern", id="C10-id"),
    pytest.param(put("previous", "../a"), "previous: string should match pattern", id="C11-digest"),
    pytest.param(put("colour", "red"), "colour: unknown key", id="J7-channel"),
    pytest.param(put("at", "2026-01-01T00:00:00+00:00"), "expected canonical JSON", id="J6-channel"),
    pytest.param(put("at", "2026-01-01T00:00:00+01:00"), "at: expected a time in UTC", id="C2-time"),
    pytest.param(put("reason", "x" * 2**20), "expected at most 1048576 bytes", id="J2-channel"),
]


@pytest.mark.parametrize(("edit", "message"), BROKEN)
def test_malformed_entry_is_refused(
    store: Store, releases: list[str], edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    promote(store, releases[0])
    promote(store, releases[1])
    path = entry_file(store, 2)
    path.write_bytes(edited(path.read_bytes(), edit))
    for read in (
        lambda: store.channel("production"),
        lambda: store.channel_after("production", 1),
        lambda: store.history("production"),
        lambda: rollback(store),
    ):
        with pytest.raises(FormatError, match=rf"^channels/production/{2:020d}.json: .*{message}") as error:
            read()
        assert "\n" not in str(error.value)


def test_entry_keys_must_occur_once_and_nest_little(store: Store, releases: list[str]) -> None:
    """J3 and J4 for channel entries."""
    entry = promote(store, releases[0])
    path = entry_file(store, 1)
    path.write_bytes(entry.to_bytes()[:-1] + b',"actor":"eve"}')
    with pytest.raises(FormatError, match="key 'actor' occurs twice"):
        store.channel("production")
    path.write_bytes(json.dumps({"a": json.loads("[" * 50 + "]" * 50)}).encode())
    with pytest.raises(FormatError, match="nested at most 32 deep"):
        store.channel("production")


def test_the_last_generation_is_the_last(store: Store, releases: list[str]) -> None:
    """C3: no overflow into a path that does not sort."""
    entry = promote(store, releases[0])
    last = 10**20 - 1
    entry_file(store, last).write_bytes(entry.model_copy(update={"generation": last}).to_bytes())
    with pytest.raises(FormatError, match=r"generation: input should be less than or equal to 9{20}"):
        promote(store, releases[1])
