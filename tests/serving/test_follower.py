"""The follower's own logic on a real store, by a fake clock; a swapper that fails on demand replaces the engine."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.datastructures import State
from support.adapters import write_random_adapter
from support.tiny_models import write_tiny_model

from unlearn_serve.errors import NotEnforced, StoreUnavailable, SwapError
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.followed_store import FollowedStore
from unlearn_serve.serving.follower import Follower
from unlearn_serve.serving.last_applied import LastApplied
from unlearn_serve.serving.live import Live
from unlearn_serve.serving.swap import SwapBroken, SwapTimes, SwapUndone
from unlearn_serve.store import Store

RETRY_SECONDS = 10.0
"""What docs/operations.md promises."""


class InjectedSwapper:
    """Swaps at once, unless `failures` holds what the next swap is to raise, or `gate` holds it up."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.swaps: list[tuple[str, str]] = []
        self.attempts = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def swap(
        self, release: str, *, previous: Any, when_live: Callable[[], None], mode: Any, when_staged: Any
    ) -> SwapTimes:
        self.attempts += 1
        await self.gate.wait()
        await when_staged()
        if self.failures:
            raise self.failures.pop(0)
        self.swaps.append((release, mode))
        when_live()
        return SwapTimes(mode=mode, stage_ms=1.0, drain_ms=None, drained=None, stall_ms=1.0, live_at=0.0)


class Bench:
    """A follower of channel `production` with everything a test turns: clock, swapper, store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "store"
        self.now = 1000.0
        self.swapper = InjectedSwapper()
        config = ServingConfig(store=str(self.folder), poll_seconds=0.001, state_dir=str(folder / "state"))
        self.follower = Follower(
            config=config,
            swapper=self.swapper,  # type: ignore[arg-type]
            live=Live(channel="production"),
            app_state=State(),
            last_applied=LastApplied(config.state_path),
            clock=lambda: self.now,
        )
        self.live = self.follower.live

    def promote(self, release: str) -> int:
        return Store.open(str(self.folder)).promote(release, "production", actor="test").generation

    def events(self) -> list[str]:
        return [record.event for record in self.live.swaps]

    async def polls(self, count: int = 5) -> None:
        """Let `run` look at least `count` more times."""
        look, looks = self.follower._read_newest, 0

        async def counted(after: int) -> Any:
            nonlocal looks
            looks += 1
            return await look(after)

        self.follower._read_newest = counted  # type: ignore[method-assign]
        await until(lambda: looks > count)
        self.follower._read_newest = look  # type: ignore[method-assign]


async def until(reached: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not reached():
            await asyncio.sleep(0.001)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store with two releases and no channel yet."""
    folder = tmp_path_factory.mktemp("follower")
    base = write_tiny_model(folder / "tiny")
    store = Store.open(str(folder / "store"), create=True)
    adapters = [write_random_adapter(base, folder / f"adapter{seed}", seed=seed, rank=4) for seed in range(2)]
    return folder / "store", [store.publish(adapter) for adapter in adapters]


@pytest.fixture
def releases(published: tuple[Path, list[str]]) -> list[str]:
    return published[1]


@pytest.fixture
def bench(published: tuple[Path, list[str]], tmp_path: Path) -> Bench:
    shutil.copytree(published[0], tmp_path / "store")
    return Bench(tmp_path)


@pytest.fixture
def run(bench: Bench) -> Iterator[Callable[..., None]]:
    """Run a scenario beside the follower's own loop, which must be going on at its end."""

    def beside(scenario: Callable[[], Any]) -> None:
        async def both() -> None:
            following = asyncio.create_task(bench.follower.run())
            await scenario()
            assert not following.done(), "no deletion would go live any more, unnoticed"
            following.cancel()

        asyncio.run(both())

    return beside


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("another"), SwapError("staging"), SwapUndone("x")])
def test_it_survives_any_failure_and_tries_again_after_ten_seconds_not_before(
    bench: Bench, releases: list[str], run: Callable[..., None], error: Exception
) -> None:
    bench.swapper.failures = [error, error]

    async def scenario() -> None:
        generation = bench.promote(releases[0])
        await until(lambda: bench.live.refused)
        assert bench.live.refused.startswith(f"generation {generation}: {type(error).__name__}: ")
        bench.now += RETRY_SECONDS - 0.001
        await bench.polls()
        assert bench.swapper.attempts == 1
        bench.now += 0.001
        await until(lambda: bench.swapper.attempts == 2)
        await bench.polls()
        assert bench.swapper.attempts == 2, "each failure starts the ten seconds anew"
        bench.now += RETRY_SECONDS
        await until(lambda: bench.live.release == releases[0])

    run(scenario)
    assert bench.live.refused is None
    assert bench.events() == ["refusal", "swap"], "one refusal, not one a try"


def test_a_newer_entry_does_not_wait_for_the_refused_one(
    bench: Bench, releases: list[str], run: Callable[..., None]
) -> None:
    bench.swapper.failures = [SwapError("worker 0 could not stage it")]

    async def scenario() -> None:
        bench.promote(releases[0])
        await until(lambda: bench.live.refused)
        generation = bench.promote(releases[1])
        await until(lambda: bench.live.generation == generation)

    run(scenario)
    assert bench.swapper.swaps == [(releases[1], "recompute")]


def test_apply_tries_a_refused_entry_at_once(bench: Bench, releases: list[str]) -> None:
    bench.swapper.failures = [SwapError("worker 0 could not stage it")]

    async def scenario() -> None:
        bench.promote(releases[0])
        with pytest.raises(SwapError):
            await bench.follower.apply_newest(again=False)
        assert await bench.follower.apply_newest(again=False) is None
        record = await bench.follower.apply_newest(again=True)
        assert record is not None
        assert record.release == releases[0]

    asyncio.run(scenario())


def test_a_broken_swap_ends_the_following(bench: Bench, releases: list[str]) -> None:
    bench.swapper.failures = [SwapBroken("could not be undone")]
    bench.promote(releases[0])

    asyncio.run(asyncio.wait_for(bench.follower.run(), 60))

    assert bench.live.broken == "could not be undone"
    assert bench.events() == ["broken"]
    with pytest.raises(SwapError, match="could not be undone"):
        asyncio.run(bench.follower.apply_newest(again=True))


def test_a_caller_that_hangs_up_does_not_cut_a_swap_short(bench: Bench, releases: list[str]) -> None:
    bench.promote(releases[0])

    async def scenario() -> None:
        bench.swapper.gate.clear()
        caller = asyncio.create_task(bench.follower.apply_newest(again=True))
        await until(lambda: bench.swapper.attempts)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        second = asyncio.create_task(bench.follower.apply_newest(again=True))
        await asyncio.sleep(0.01)
        assert bench.swapper.attempts == 1, "the next one waits: two swaps at a time would mix their flips"
        bench.swapper.gate.set()
        assert await second is None

    asyncio.run(scenario())
    assert (bench.live.release, bench.events()) == (releases[0], ["swap"])


def test_an_entry_whose_swap_was_cancelled_is_not_lost(bench: Bench, releases: list[str]) -> None:
    bench.promote(releases[0])
    bench.swapper.failures = [asyncio.CancelledError()]

    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await bench.follower.apply_newest(again=False)
        await bench.follower.apply_newest(again=False)

    asyncio.run(scenario())
    assert (bench.live.release, bench.live.refused) == (releases[0], None)


def test_the_mode_is_the_callers_or_the_settings(bench: Bench, releases: list[str]) -> None:
    async def scenario() -> None:
        bench.promote(releases[0])
        await bench.follower.apply_newest(again=False)
        bench.promote(releases[1])
        await bench.follower.apply_newest(again=True, mode="drain")

    asyncio.run(scenario())
    assert bench.swapper.swaps == [(releases[0], "recompute"), (releases[1], "drain")]
    assert [record.mode for record in bench.live.swaps] == ["recompute", "drain"]


def test_the_store_is_opened_once_and_anew_after_it_was_away(
    bench: Bench, releases: list[str], run: Callable[..., None]
) -> None:
    opened = 0

    def counted() -> Store:
        nonlocal opened
        opened += 1
        return bench.follower.config.open_store()

    bench.follower._store = FollowedStore(counted)
    away = bench.folder.with_name("away")

    async def scenario() -> None:
        bench.promote(releases[0])
        await until(lambda: bench.live.release == releases[0])
        await bench.polls()
        assert opened == 1, "polls, and all that an entry needs, share one open store"
        bench.folder.rename(away)
        await until(lambda: bench.live.store_error)
        assert "no such folder" in bench.live.store_error
        await bench.polls()
        assert REGISTRY.get_sample_value("unlearn_store_reachable") == 0
        away.rename(bench.folder)
        bench.promote(releases[1])
        await until(lambda: bench.live.release == releases[1])

    run(scenario)
    assert bench.live.store_error is None
    assert REGISTRY.get_sample_value("unlearn_store_reachable") == 1
    assert bench.events() == ["swap", "store-unreachable", "store-reachable", "swap"], "one event each, not one a poll"


def test_an_unexpected_error_of_the_store_is_told_and_survived(
    bench: Bench, releases: list[str], run: Callable[..., None]
) -> None:
    def fail() -> Store:
        raise ZeroDivisionError("a bug in a client library")

    async def scenario() -> None:
        working, bench.follower._store = bench.follower._store, FollowedStore(fail)
        bench.promote(releases[0])
        await until(lambda: bench.live.store_error)
        assert "unexpected ZeroDivisionError" in bench.live.store_error
        bench.follower._store = working
        await until(lambda: bench.live.release == releases[0])

    run(scenario)
    assert bench.events() == ["store-unreachable", "store-reachable", "swap"]


def test_a_full_disk_does_not_keep_a_release_from_going_live(
    bench: Bench, releases: list[str], run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.follower.audit, "append", full)
    monkeypatch.setattr(LastApplied, "remember", full)

    async def scenario() -> None:
        bench.promote(releases[0])
        await until(lambda: bench.live.release == releases[0])
        await bench.polls()

    run(scenario)
    assert (bench.live.refused, bench.swapper.attempts) == (None, 1)


@pytest.fixture
def last(bench: Bench) -> LastApplied:
    return LastApplied(bench.follower.config.state_path)


def test_what_could_not_be_kept_is_kept_ten_seconds_later(
    bench: Bench, releases: list[str], run: Callable[..., None], last: LastApplied, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one full disk would keep a server from starting without the store until the next promote."""
    remember, attempts = LastApplied.remember, 0

    def full_at_first(*arguments: Any) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise OSError(28, "No space left on device")
        remember(*arguments)

    monkeypatch.setattr(LastApplied, "remember", full_at_first)

    async def scenario() -> None:
        generation = bench.promote(releases[0])
        await until(lambda: bench.live.release == releases[0])
        await bench.polls()
        assert (attempts, last.marked[0]) == (1, generation)
        with pytest.raises(NotEnforced, match="got nothing"):
            last.recall()
        bench.now += RETRY_SECONDS
        await until(lambda: attempts == 2)
        await bench.polls()
        assert attempts == 2

    run(scenario)
    kept = last.recall()
    assert kept is not None
    assert kept[0] == bench.live.entry


def test_an_undone_swap_does_not_keep_the_next_start_from_what_is_live(
    bench: Bench, releases: list[str], last: LastApplied
) -> None:
    async def scenario() -> None:
        bench.promote(releases[0])
        await bench.follower.apply_newest(again=False)
        bench.promote(releases[1])
        bench.swapper.failures = [SwapUndone("a worker did not flip")]
        with pytest.raises(SwapUndone):
            await bench.follower.apply_newest(again=False)

    asyncio.run(scenario())
    kept = last.recall()
    assert kept is not None
    assert kept[0] == bench.live.entry


def test_a_release_does_not_go_live_where_that_cannot_be_marked(
    bench: Bench, releases: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start without the store would bring back what it replaces, and nothing would tell."""

    def broken_disk(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LastApplied, "mark", broken_disk)
    bench.promote(releases[0])
    with pytest.raises(
        SwapError, match=r"--state-dir: expected a folder that can be changed, got .*Input/output error"
    ):
        asyncio.run(bench.follower.apply_newest(again=False))
    assert (bench.live.entry, bench.swapper.swaps) == (None, [])


class TestFollowedStore:
    """A connection that has gone stale costs a new one, and is not yet an absent store."""

    @pytest.fixture
    def opened(self) -> list[object]:
        return []

    @pytest.fixture
    def store(self, opened: list[object]) -> FollowedStore:
        def open_store() -> Any:
            opened.append(object())
            return opened[-1]

        return FollowedStore(open_store)

    def test_a_kept_store_that_fails_is_replaced_within_the_call(
        self, store: FollowedStore, opened: list[object]
    ) -> None:
        def stale(used: Any) -> Any:
            if used is opened[0] and len(opened) == 1 and calls:
                raise StoreUnavailable("expired credentials")
            calls.append(used)
            return used

        calls: list[object] = []
        first = asyncio.run(store.call(stale))
        second = asyncio.run(store.call(stale))
        assert [first, second] == opened
        assert asyncio.run(store.call(lambda used: used)) is second

    def test_one_that_fails_although_new_is_told(self, store: FollowedStore, opened: list[object]) -> None:
        def away(used: Any) -> None:
            raise StoreUnavailable("no route to host")

        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                asyncio.run(store.call(away))
        assert len(opened) == 2, "one try a call"

    def test_what_it_says_of_its_contents_is_no_failure(self, store: FollowedStore, opened: list[object]) -> None:
        def corrupt(used: Any) -> None:
            raise SwapError("any other of our errors")

        for _ in range(3):
            with pytest.raises(SwapError):
                asyncio.run(store.call(corrupt))
        assert len(opened) == 1
