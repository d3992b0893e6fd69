"""The follower's own logic on a real store; the engine is stood in for by a swapper that fails on demand."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import State
from support.adapters import write_random_adapter
from support.tiny_models import write_tiny_model

from unlearn_serve.errors import SwapError
from unlearn_serve.serving import follower as module
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.follower import Follower
from unlearn_serve.serving.last_applied import LastApplied
from unlearn_serve.serving.live import Live
from unlearn_serve.serving.swap import SwapBroken, SwapTimes
from unlearn_serve.store import Store


class ObedientSwapper:
    """Swaps at once, unless `failures` holds what the next swap is to raise."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.swaps: list[tuple[str, str]] = []

    async def swap(self, release: str, *, previous: Any, when_live: Callable[[], None], mode: Any) -> SwapTimes:
        if self.failures:
            raise self.failures.pop(0)
        self.swaps.append((release, mode))
        when_live()
        return SwapTimes(mode=mode, stage_ms=1.0, drain_ms=0.0, stall_ms=1.0, live_at=0.0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("follower")
    base = write_tiny_model(folder / "tiny")
    store = Store.open(str(folder / "store"), create=True)
    adapters = [write_random_adapter(base, folder / f"adapter{seed}", seed=seed, rank=4) for seed in range(2)]
    return folder / "store", [store.publish(adapter) for adapter in adapters]


@pytest.fixture
def follower(published: tuple[Path, list[str]], tmp_path: Path) -> Follower:
    import shutil

    shutil.copytree(published[0], tmp_path / "store")
    config = ServingConfig(store=str(tmp_path / "store"), poll_seconds=0.001, state_dir=str(tmp_path / "state"))
    return Follower(
        config=config,
        swapper=ObedientSwapper(),  # type: ignore[arg-type]
        live=Live(channel="production"),
        app_state=State(),
        last_applied=LastApplied(config.state_path),
    )


def promote(follower: Follower, release: str) -> None:
    Store.open(follower.config.store).promote(release, "production", actor="test")


async def follow_until(follower: Follower, reached: Callable[[], object]) -> None:
    task = asyncio.create_task(follower.run())
    try:
        async with asyncio.timeout(30):
            while not reached() and not task.done():
                await asyncio.sleep(0.001)
    finally:
        task.cancel()


def test_an_unexpected_error_does_not_end_the_following(
    follower: Follower, published: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the server would serve on, and no deletion would go live any more, unnoticed."""
    monkeypatch.setattr(module, "_RETRY_REFUSED_SECONDS", 0.0)
    first, second = published[1]
    swapper: Any = follower.swapper
    swapper.failures = [RuntimeError("a bug"), KeyError("another")]
    promote(follower, first)

    async def scenario() -> None:
        await follow_until(follower, lambda: not swapper.failures or swapper.swaps)
        promote(follower, second)
        await follow_until(follower, lambda: follower.live.release == second)

    asyncio.run(scenario())
    assert follower.live.release == second


def test_what_was_refused_is_tried_again_after_a_while_and_not_before(
    follower: Follower, published: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    (first, _), swapper = published[1], follower.swapper
    assert isinstance(swapper, ObedientSwapper)
    swapper.failures = [SwapError("worker 0 could not stage it"), SwapError("worker 0 could not stage it")]
    promote(follower, first)

    async def look() -> object:
        again = module.time.monotonic() >= follower._retry_at
        return await follower.apply_newest(again=again)

    async def scenario() -> None:
        with pytest.raises(SwapError):
            await look()
        assert await look() is None
        assert follower.live.refused is not None
        clock[0] += module._RETRY_REFUSED_SECONDS
        with pytest.raises(SwapError):
            await look()
        clock[0] += module._RETRY_REFUSED_SECONDS
        assert await look() is not None

    asyncio.run(scenario())
    assert (follower.live.release, follower.live.refused) == (first, None)
    assert [record.event for record in follower.live.swaps] == ["refusal", "swap"], "one refusal, not one a try"


def test_a_broken_swap_ends_the_following(follower: Follower, published: tuple[Path, list[str]]) -> None:
    swapper: Any = follower.swapper
    swapper.failures = [SwapBroken("could not be undone")]
    promote(follower, published[1][0])
    asyncio.run(asyncio.wait_for(follower.run(), 30))
    assert follower.live.broken == "could not be undone"
    assert follower.live.swaps[-1].event == "broken"


def test_a_store_that_went_away_is_opened_anew(follower: Follower, published: tuple[Path, list[str]]) -> None:
    first, second = published[1]
    store, away = Path(follower.config.store), Path(follower.config.store + ".away")
    promote(follower, first)

    async def scenario() -> None:
        assert await follower.apply_newest(again=False) is not None
        store.rename(away)
        assert await follower.apply_newest(again=False) is None
        assert follower.live.store_error is not None
        away.rename(store)
        promote(follower, second)
        assert await follower.apply_newest(again=False) is not None

    asyncio.run(scenario())
    assert (follower.live.release, follower.live.store_error) == (second, None)


def test_the_mode_is_the_callers_or_the_settings(follower: Follower, published: tuple[Path, list[str]]) -> None:
    first, second = published[1]
    swapper: Any = follower.swapper

    async def scenario() -> None:
        promote(follower, first)
        await follower.apply_newest(again=False)
        promote(follower, second)
        await follower.apply_newest(again=True, mode="drain")

    asyncio.run(scenario())
    assert swapper.swaps == [(first, "recompute"), (second, "drain")]
    assert [record.mode for record in follower.live.swaps] == ["recompute", "drain"]
