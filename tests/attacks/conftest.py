import pytest
from format.tiny import write_adapter

from attacks.generate import Sound


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    """The bytes of a sound adapter, of which every attack changes something."""
    folder = tmp_path_factory.mktemp("sound")
    write_adapter(folder)
    return Sound.read(folder)
