"""C1 to C9: channels move by compare-and-swap, forwards only, and say who moved them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from store.moves import entry_file, promote, rollback

from unlearn_serve.errors import (
    ChannelConflict,
    ChannelNotFound,
    DigestError,
    FormatError,
    ReleaseNotFound,
    StoreError,
    StoreUnavailable,
)
from unlearn_serve.store import ChannelEntry, Store


def test_promote_makes_the_next_generation(store: Store, releases: list[str]) -> None:
    one = promote(store, releases[0], reason="case 0")
    two = promote(store, releases[1])
    assert (one.generation, one.release, one.action, one.restores_generation) == (1, releases[0], "promote", None)
    assert (one.actor, one.reason, two.reason) == ("ann", "case 0", "")
    assert two.generation == 2
    assert store.channel("production") == two
    assert store.history("production") == [one, two]
    assert store.channels() == ["production"]
    assert entry_file(store, 2).read_bytes() == two.to_bytes()
    assert ChannelEntry.from_bytes(two.to_bytes(), source="entry") == two


def test_channels_are_apart(store: Store, releases: list[str]) -> None:
    promote(store, releases[0])
    store.promote(releases[1], "pro", actor="ann")
    store.promote(releases[2], "production.eu", actor="ann")
    assert store.channels() == ["pro", "production", "production.eu"]
    assert [store.channel(name).release for name in ("pro", "production", "production.eu")] == [
        releases[1],
        releases[0],
        releases[2],
    ]


@pytest.mark.parametrize("expected", [0, 1, 3])
def test_expected_generation_is_compared(store: Store, releases: list[str], expected: int) -> None:
    """C4."""
    promote(store, releases[0], expected_generation=0)
    promote(store, releases[1], expected_generation=1)
    message = f"channel 'production': expected generation {expected}, got 2; nothing was changed"
    with pytest.raises(ChannelConflict, match=message):
        promote(store, releases[2], expected_generation=expected)
    with pytest.raises(ChannelConflict, match=message):
        rollback(store, expected_generation=expected)
    assert store.channel("production").generation == 2


def test_only_a_sound_release_goes_live(store: Store, releases: list[str]) -> None:
    """C5."""
    promote(store, releases[0])
    promote(store, releases[1])
    with pytest.raises(ReleaseNotFound):
        promote(store, "0" * 64)
    for digest in (releases[0], releases[2]):
        (Path(store.url) / "releases" / digest / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(DigestError):
        promote(store, releases[2])
    with pytest.raises(DigestError):
        rollback(store)
    assert store.channel("production").generation == 2


def test_a_channel_that_is_not_there(store: Store) -> None:
    for read in (store.channel, store.history):
        with pytest.raises(ChannelNotFound, match="holds no channel 'production'; promote a release to it"):
            read("production")
    with pytest.raises(ChannelNotFound):
        rollback(store)
    assert store.channel_after("production", 0) is None
    assert store.channels() == []


NOT_CHANNELS = ["", ".", "..", "../x", "a/b", "A", "-a", ".a", "a b", "a\n", "é", "a" * 65, "a\x00", "a\\b"]


@pytest.mark.parametrize("name", NOT_CHANNELS)
def test_what_is_no_channel_name_never_becomes_a_path(store: Store, releases: list[str], name: str) -> None:
    """C1."""
    calls: list[Callable[[], object]] = [
        lambda: store.channel(name),
        lambda: store.history(name),
        lambda: store.channel_after(name, 0),
        lambda: store.promote(releases[0], name, actor="ann"),
        lambda: store.rollback(name, actor="ann"),
    ]
    for call in calls:
        with pytest.raises(StoreError, match=r"channel: expected 1 to 64 of a-z 0-9 \. _ - that start with"):
            call()
    assert not (Path(store.url) / "channels").exists()


@pytest.mark.parametrize("name", ["a", "0", "production", "eu-west.1_b", "a" * 64, "a..b"])
def test_channel_names_that_are_allowed(store: Store, releases: list[str], name: str) -> None:
    """C1."""
    store.promote(releases[0], name, actor="ann")
    assert store.channels() == [name]
    assert store.channel(name).generation == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actor": ""}, "actor: string should have at least 1"),
        ({"actor": "x" * 129}, "actor: string should have at most 128"),
        ({"actor": "ann\n2026 bob promoted"}, "actor: expected one line of printable"),
        ({"actor": "ann", "reason": "\x1b[2J"}, "reason: expected one line of printable"),
        ({"actor": "ann", "reason": "x" * 1025}, "reason: string should have at most 1024"),
    ],
)
def test_who_and_why_are_single_lines(store: Store, releases: list[str], options: dict[str, str], message: str) -> None:
    """C8."""
    with pytest.raises(FormatError, match=f"^channel 'production': {message}") as error:
        store.promote(releases[0], "production", **options)
    assert "\n" not in str(error.value)
    assert store.channels() == []


def test_follower_sees_the_newest_entry_once(store: Store, releases: list[str]) -> None:
    entries = [promote(store, digest) for digest in releases]
    assert store.channel_after("production", 0) == entries[2]
    assert store.channel_after("production", 1) == entries[2]
    assert store.channel_after("production", 2) == entries[2]
    assert store.channel_after("production", 3) is None


def test_follower_reports_a_store_that_went_back(store: Store, releases: list[str]) -> None:
    """C9."""
    promote(store, releases[0])
    with pytest.raises(
        StoreUnavailable, match=r"no longer holds generation 7: was the store .* restored from a backup"
    ):
        store.channel_after("production", 7)
    with pytest.raises(StoreUnavailable, match="no longer holds generation 1"):
        store.channel_after("staging", 1)
    with pytest.raises(StoreError, match="generation: expected 0 to"):
        store.channel_after("production", -1)
