from pathlib import Path

import pytest
from format.tiny import write_adapter

from unlearn_serve.store import Store


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three sound adapter directories of one deletion request, so that any may follow any; never changed."""
    root = tmp_path_factory.mktemp("adapters")
    for seed in range(3):
        write_adapter(root / str(seed), seed=seed, deletion_ids=("case-17",))
    return [root / str(seed) for seed in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), create=True)


@pytest.fixture
def releases(store: Store, adapters: list[Path]) -> list[str]:
    """Digests of three releases in `store`."""
    return [store.publish(adapter) for adapter in adapters]
