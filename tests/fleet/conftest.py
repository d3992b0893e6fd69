from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.adapters import write_random_adapter
from support.engine import set_environment
from support.fleet import serving
from support.server import ADMIN_KEY
from support.tiny_models import write_tiny_model
from support.vllm_config import create_config

from unlearn_serve.store import Store

RANKS = 4, 8


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("fleet") / "tiny")


@pytest.fixture(scope="session")
def vllm_config(base: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch)
        yield create_config(base)


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("fleet-adapters")
    return [write_random_adapter(base, folder / f"{rank}", seed=rank, rank=rank) for rank in RANKS]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), create=True)


@pytest.fixture
def releases(store: Store, adapters: list[Path]) -> list[str]:
    """Two releases; the first is generation 1 of production."""
    digests = [store.publish(adapter) for adapter in adapters]
    store.promote(digests[0], "production", actor="test")
    return digests


@pytest.fixture
def start(
    vllm_config: Any, releases: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """Start one more server of the store, on generation 1; returns its URL."""
    set_environment(monkeypatch, UNLEARN_ADMIN_KEY=ADMIN_KEY)
    count = 0
    with ExitStack() as servers:

        def one(store: Path = tmp_path / "store", **settings: Any) -> str:
            nonlocal count
            count += 1
            return servers.enter_context(serving(vllm_config, store, tmp_path / f"state{count}", **settings))

        yield one
