from pathlib import Path

import pytest
from format.tiny import write_adapter

from unlearn_serve.format import Manifest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    write_adapter(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_adapter(tmp_path_factory.mktemp("adapter"))
