"""The start of API servers beside real workers and no engine: workers that disagree, and several API servers."""

import asyncio
import copy
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import State
from support.adapters import write_random_adapter
from support.engine import set_environment
from support.fleet import EngineWithoutModel
from support.public_app import parse_serve
from support.server import ADMIN_KEY
from support.tiny_models import write_tiny_model
from support.vllm_config import create_config

from unlearn_serve.errors import NotEnforced, SwapError
from unlearn_serve.serving.startup import start_following
from unlearn_serve.serving.workers import Workers
from unlearn_serve.store import Store

MAX_RANK = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("startup") / "tiny")


@pytest.fixture(scope="module")
def vllm_config(base: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch)
        yield create_config(base)


@pytest.fixture(autouse=True)
def _process(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, UNLEARN_ADMIN_KEY=ADMIN_KEY)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), create=True)


@pytest.fixture
def releases(store: Store, base: Path, tmp_path: Path) -> list[str]:
    """Two releases; the first is generation 1 of production."""
    digests = [
        store.publish(write_random_adapter(base, tmp_path / str(seed), seed=seed, rank=MAX_RANK)) for seed in range(2)
    ]
    store.promote(digests[0], "production", actor="test")
    return digests


@pytest.fixture
def config(vllm_config: Any, tmp_path: Path) -> Any:
    folders = {"store": str(tmp_path / "store"), "state_dir": str(tmp_path / "state")}
    return with_settings(vllm_config, **folders, poll_seconds=0.02)


def with_settings(vllm_config: Any, *, index: int = 0, servers: int = 1, **settings: Any) -> Any:
    """The configuration of API server `index` of `servers`, with more of our settings."""
    config = copy.copy(vllm_config)
    before = vllm_config.additional_config.get("unlearn", {})
    config.additional_config = {"unlearn": {**before, **settings}}
    config.parallel_config = copy.copy(vllm_config.parallel_config)
    config.parallel_config._api_process_rank = index
    config.parallel_config._api_process_count = servers
    return config


@asynccontextmanager
async def started(engine: Any) -> AsyncIterator[State]:
    state = State()
    await start_following(engine, state, parse_serve())
    try:
        yield state
    finally:
        tasks = [getattr(state, name, None) for name in ("unlearning_task", "unlearning_admin_task")]
        for task in filter(None, tasks):
            task.cancel()


async def put_on(worker: Any, release: str) -> None:
    """What a worker is on that was built while the channel named `release`."""
    worker.unlearn_stage(release)
    while worker.unlearn_status()["staging"] == "busy":
        await asyncio.sleep(0.01)
    assert worker.unlearn_flip(release) is None


async def until_live(state: State, generation: int) -> None:
    async with asyncio.timeout(60):
        while state.unlearning.live.generation != generation:
            await asyncio.sleep(0.01)


def test_workers_that_were_built_before_and_after_a_promote_start_on_the_channels_release(
    config: Any, store: Store, releases: list[str]
) -> None:
    """The bug: of many workers some read the channel earlier than others, and a promote in between ends the start."""
    first, second = releases

    async def scenario() -> None:
        engine = EngineWithoutModel(config, max_rank=MAX_RANK, workers=3)
        await put_on(engine.workers[0], first)
        store.promote(second, "production", actor="test")
        for late in engine.workers[1:]:
            await put_on(late, second)
        async with started(engine) as state:
            assert state.unlearning.live.release == second
            assert [worker.unlearn_status()["release"] for worker in engine.workers] == [second] * 3

    asyncio.run(scenario())


def test_several_api_servers_name_what_the_first_swaps(
    config: Any, store: Store, releases: list[str], tmp_path: Path
) -> None:
    first, second = releases
    listen = f"unix:{tmp_path / 'admin.sock'}"

    async def scenario() -> None:
        engine = EngineWithoutModel(with_settings(config, servers=2, admin_listen=listen), max_rank=MAX_RANK)
        observing = copy.copy(engine)
        observing.vllm_config = with_settings(engine.vllm_config, index=1, servers=2)

        async with asyncio.timeout(60), started(engine) as leader, started(observing) as other:
            assert other.unlearning.live.release == leader.unlearning.live.release == first
            assert not hasattr(other, "unlearning_task"), "it swaps nothing"
            assert not hasattr(other, "unlearning_admin_task")
            await until_live(leader, store.promote(second, "production", actor="test").generation)
            assert other.unlearning.live.release == second
            assert other.unlearning.live.fingerprint == leader.unlearning.live.fingerprint
            leader.unlearning_task.cancel()
            await asyncio.wait([leader.unlearning_task])
            await asyncio.sleep(0)
            assert "has ended; restart the server" in other.unlearning.live.broken

    asyncio.run(scenario())


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"^--api-server-count .*: expected 1 without --admin-listen, got 2"),
        ({"admin_listen": "127.0.0.1:8001", "routes": 1}, "^--routes: expected --api-server-count 1, got 2"),
    ],
)
def test_what_several_api_servers_cannot_do_ends_the_start_of_each(
    config: Any, releases: list[str], index: int, settings: dict[str, Any], message: str
) -> None:
    engine = EngineWithoutModel(with_settings(config, index=index, servers=2, **settings), max_rank=MAX_RANK)

    with pytest.raises(NotEnforced, match=message):
        asyncio.run(start_following(engine, State(), parse_serve()))  # type: ignore[arg-type]


def test_all_workers_that_fail_are_named(config: Any, releases: list[str]) -> None:
    async def scenario() -> None:
        engine = EngineWithoutModel(config, max_rank=MAX_RANK, workers=3)
        with pytest.raises(SwapError, match=r"worker 0: NotEnforced: .*; worker 2: NotEnforced: this server has no"):
            await Workers(engine).call("unlearn_drop_route", 7)  # type: ignore[arg-type]

    asyncio.run(scenario())
