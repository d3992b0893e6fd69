"""Addresses of an admin listener: how they are written, and who may connect."""

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.server import free_port

from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving.listen_address import ListenAddress


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("text", ["127.0.0.1:8001", "[::1]:8001", "0.0.0.0:1", "unix:/run/admin.sock"])
def test_what_is_read_is_written_alike(text: str) -> None:
    assert str(ListenAddress.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "8001", ":8001", "localhost:8001", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536"),
        *("127.0.0.1:x", "127.0.0.1:-1", "::1:8001", "[127.0.0.1]:8001", "http://127.0.0.1:8001", "unix:", "unix:a/b"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        ListenAddress.parse(text)


def test_a_port_is_listened_on() -> None:
    port = free_port()
    with ListenAddress(host="127.0.0.1", port=port).bind(), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def test_a_port_that_is_taken_ends_the_start(taken: int) -> None:
    with pytest.raises(NotEnforced, match=rf"got 127.0.0.1:{taken}: .*in use"):
        ListenAddress(host="127.0.0.1", port=taken).bind()


def test_only_its_owner_may_connect_to_a_unix_socket(path: Path) -> None:
    with ListenAddress(path=path).bind():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_socket_that_a_killed_server_left_is_replaced(path: Path) -> None:
    ListenAddress(path=path).bind().close()
    assert path.exists()

    with ListenAddress(path=path).bind(), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_neither_a_socket_in_use_nor_a_file_is_replaced(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    with ListenAddress(path=path).bind(), socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(NotEnforced, match="another server listens there"):
            ListenAddress(path=path).bind()
        client.connect(str(path))
    with pytest.raises(NotEnforced, match="a file that is no socket"):
        ListenAddress(path=file).bind()
    assert file.read_text() == "kept"


def test_a_folder_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(NotEnforced, match="No such file or directory"):
        ListenAddress(path=tmp_path / "no" / "admin.sock").bind()


def test_a_check_leaves_nothing_behind(path: Path) -> None:
    ListenAddress(path=path).check()

    assert not path.exists()
