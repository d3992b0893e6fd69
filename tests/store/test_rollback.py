"""C7: a channel behaves like a stack of releases, and its history like a log."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore
from store.moves import promote, rollback

from unlearn_serve.errors import (
    StoreError,
)
from unlearn_serve.store import Backend, Store


def test_rollback_twice_walks_back_further(store: Store, releases: list[str]) -> None:
    """C7."""
    for digest in releases:
        promote(store, digest)
    first, second = rollback(store, reason="worse"), rollback(store)
    assert (first.generation, first.release, first.action, first.restores_generation) == (4, releases[1], "rollback", 2)
    assert (second.generation, second.release, second.restores_generation) == (5, releases[0], 1)
    with pytest.raises(StoreError, match="no other release was live before generation 1, so there is nothing to roll"):
        rollback(store)
    assert store.channel("production") == second


def test_rollback_never_returns_to_what_a_rollback_left(store: Store, releases: list[str]) -> None:
    """C7: A, B, back to A, C; the way back from C leads to A, not to B."""
    a, b, c = releases
    promote(store, a)
    promote(store, b)
    rollback(store)
    promote(store, c)
    assert (rollback(store).release, store.channel("production").restores_generation) == (a, 1)
    with pytest.raises(StoreError, match="nothing to roll back to"):
        rollback(store)


def test_promoting_the_same_release_twice_counts_once(store: Store, releases: list[str]) -> None:
    """C7: a repeated promote must not turn the next rollback into one that changes nothing."""
    promote(store, releases[0])
    promote(store, releases[1])
    promote(store, releases[1])
    assert rollback(store).release == releases[0]


def test_a_release_that_was_rolled_back_stays_away(store: Store, releases: list[str]) -> None:
    """C7: B, A, back to B, B again; there is nothing below B, and certainly not A."""
    a, b, _ = releases
    promote(store, b)
    promote(store, a)
    rollback(store)
    promote(store, b)
    with pytest.raises(StoreError, match="nothing to roll back to"):
        rollback(store)


def test_rollback_to_a_generation(store: Store, releases: list[str]) -> None:
    for digest in releases:
        promote(store, digest)
    assert rollback(store).restores_generation == 2
    entry = rollback(store, to_generation=4)  # under which generation 2's release was live
    assert (entry.generation, entry.release, entry.restores_generation) == (5, releases[1], 2)
    assert rollback(store, to_generation=3).release == releases[2]
    for beyond in (0, -1, 7):
        with pytest.raises(StoreError, match=rf"expected one of generations 1 to 6, got {beyond}$"):
            rollback(store, to_generation=beyond)


@given(moves=st.lists(st.integers(-2, 2), max_size=12))
@settings(max_examples=40)
def test_any_moves_against_a_plain_model(adapters: list[Path], moves: list[int]) -> None:
    """C3, C6, C7: generations count up by one; what is live follows a stack of promoted releases."""
    store = Store(Backend(MemoryStore(), name="memory"))
    digests = [store.publish(adapter) for adapter in adapters]
    stack: list[str] = []
    moved = 0
    for move in moves:
        if move >= 0:
            promote(store, digests[move])
            if not stack or stack[-1] != digests[move]:
                stack.append(digests[move])
        elif len(stack) > 1:
            rollback(store)
            stack.pop()
        else:
            with pytest.raises(StoreError):
                rollback(store)
            continue
        moved += 1
        assert store.channel("production").generation == moved
        assert store.channel("production").release == stack[-1]
    if moved:
        assert [entry.generation for entry in store.history("production")] == list(range(1, moved + 1))
    assert store.verify() == []
