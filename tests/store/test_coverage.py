"""C10: no move gives back what was deleted, unless it says so and why; and no server applies one that does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from format.tiny import write_adapter
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore
from store.moves import entry_file, promote, rollback

from unlearn_serve.errors import DropsDeletions
from unlearn_serve.store import Backend, Store

Publish = Callable[..., str]


@pytest.fixture(scope="module")
def adapter_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[frozenset[str]], Path]:
    folder = tmp_path_factory.mktemp("covering")

    def make(ids: frozenset[str]) -> Path:
        path = folder / "-".join(sorted(ids))
        if not path.exists():
            write_adapter(path, deletion_ids=tuple(sorted(ids)))
        return path

    return make


@pytest.fixture
def publish(store: Store, adapter_of: Callable[[frozenset[str]], Path]) -> Publish:
    return lambda *ids: store.publish(adapter_of(frozenset(ids)))


def test_a_promote_may_add_but_not_drop(store: Store, publish: Publish) -> None:
    promote(store, publish("a"))
    both = promote(store, publish("a", "b"))
    message = r"generation 2 covers a, release [0-9a-f]{64} does not: .* promote a fused one that covers all"
    for options in ({}, {"reason": "no flag"}, {"allow_uncover": True}):
        with pytest.raises(DropsDeletions, match=message) as error:
            promote(store, publish("b"), **options)
        assert "\n" not in str(error.value)
    assert store.channel("production") == both
    entry = promote(store, publish("b"), allow_uncover=True, reason="a was withdrawn")
    assert (entry.uncovers, entry.reason) == (("a",), "a was withdrawn")
    assert store.channel("production") == entry
    assert promote(store, publish("a", "b"), allow_uncover=True).uncovers == ()


def test_a_rollback_drops_on_purpose_only(store: Store, publish: Publish) -> None:
    first, both = publish("a"), publish("a", "b")
    promote(store, first)
    promote(store, both)
    with pytest.raises(DropsDeletions, match="covers b, release"):
        rollback(store)
    entry = rollback(store, allow_uncover=True, reason="worse answers")
    assert (entry.action, entry.release, entry.uncovers) == ("rollback", first, ("b",))
    assert store.verify() == []


def test_what_cannot_be_known_is_not_assumed(store: Store, publish: Publish) -> None:
    """The live release's manifest is damaged: whether it covers more than the next is unknown."""
    promote(store, publish("a"))
    both = publish("a", "b")
    promote(store, both)
    (Path(store.url) / "releases" / both / "manifest.json").write_bytes(b"{}")
    with pytest.raises(DropsDeletions, match=r"what generation 2 covers is unknown .* repair it"):
        promote(store, publish("a"))
    assert promote(store, publish("a"), allow_uncover=True, reason="it is lost").uncovers == ()


def test_a_server_admits_what_was_said_in_any_entry_since(store: Store, publish: Publish) -> None:
    """A server that was away for some generations takes all their words together, and nothing beyond them."""
    first = promote(store, publish("a", "b", "c"))
    second = promote(store, publish("b", "c"), allow_uncover=True, reason="a was withdrawn")
    promote(store, publish("c"), allow_uncover=True, reason="b was withdrawn")
    entry = promote(store, publish("c", "d"))
    assert store.admit(entry, applied=first, covered=("a", "b", "c")).deletion_ids == ("c", "d")
    with pytest.raises(DropsDeletions, match="generation 4: what was applied before covers a, release"):
        store.admit(entry, applied=second, covered=("a", "b", "c"))
    with pytest.raises(DropsDeletions, match="covers e, release"):
        store.admit(entry, applied=first, covered=("a", "b", "c", "e"))
    entry_file(store, 2).write_bytes(b"{}")
    with pytest.raises(DropsDeletions, match="covers a, release"):
        store.admit(entry, applied=first, covered=("a", "b", "c"))


def test_an_entry_written_by_hand_is_not_admitted(store: Store, publish: Publish) -> None:
    live = promote(store, publish("a", "b"))
    by_hand = live.model_copy(update={"generation": 2, "release": publish("b")})
    entry_file(store, 2).write_bytes(by_hand.to_bytes())
    with pytest.raises(DropsDeletions, match="what was applied before covers a"):
        store.admit(store.channel("production"), applied=live, covered=("a", "b"))


@given(moves=st.lists(st.tuples(st.frozensets(st.sampled_from("abc"), min_size=1), st.booleans()), max_size=6))
def test_any_moves_a_follower_never_loses_an_id_unsaid(
    adapter_of: Callable[[frozenset[str]], Path], moves: list[tuple[frozenset[str], bool]]
) -> None:
    """Whatever was promoted, and whenever the follower looks: what it loses is in the entries it passed."""
    store = Store(Backend(MemoryStore(), name="memory"))
    covered: list[frozenset[str]] = []
    for ids, allow in moves:
        digest = store.publish(adapter_of(ids))
        if covered and covered[-1] - ids and not allow:
            with pytest.raises(DropsDeletions):
                promote(store, digest, reason="why")
            continue
        promote(store, digest, allow_uncover=allow, reason="why")
        covered.append(ids)
    if covered:
        history = store.history("production")
        for applied, ids in zip(history, covered, strict=True):
            store.admit(history[-1], applied=applied, covered=sorted(ids))
