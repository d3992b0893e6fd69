from pathlib import Path

import pytest

from tests.training.toy import FORGET, RETAIN, write_jsonl, write_toy


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that knows its facts, forget.jsonl and retain.jsonl."""
    folder = tmp_path_factory.mktemp("toy")
    write_toy(folder / "model")
    write_jsonl(folder / "forget.jsonl", FORGET)
    write_jsonl(folder / "retain.jsonl", RETAIN)
    return folder
