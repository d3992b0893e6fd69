"""The operator's list of servers: what is not one is told in one line that names the place."""

from pathlib import Path

import pytest

from unlearn_serve.errors import FormatError, ServingError
from unlearn_serve.fleet import read_fleet, require_admin_keys, servers_at

HEAD = "schema: unlearn-serve/fleet/1\nservers:\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.yaml"


def test_a_list_in_yaml_and_in_json(path: Path) -> None:
    path.write_text(HEAD + "  - url: http://10.0.0.5:8000/\n  - {url: 'https://gpu-2', name: two}\n")
    first, second = read_fleet(path)
    assert (first.url, first.label, first.admin_key_variable) == (
        "http://10.0.0.5:8000",
        "10.0.0.5:8000",
        "UNLEARN_ADMIN_KEY",
    )
    assert (second.url, second.label) == ("https://gpu-2", "two")
    path.write_text('{"schema": "unlearn-serve/fleet/1", "servers": [{"url": "http://[::1]:8000"}]}')
    assert [one.label for one in read_fleet(path)] == ["[::1]:8000"]
    path.write_text(HEAD + "  - url: unix:/run/admin.sock")
    assert [(one.label, one.socket) for one in read_fleet(path)] == [("unix:/run/admin.sock", "/run/admin.sock")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "valid dictionary"),
        ("- http://a", "valid dictionary"),
        ("schema: unlearn-serve/fleet/2\nservers: [{url: 'http://a'}]", "schema: "),
        ("schema: unlearn-serve/fleet/1\nservers: []", "servers: "),
        (HEAD + "  - http://a", "servers.0: "),
        (HEAD + "  - url: a:8000", "servers.0.url: expected the base URL of a server, like http://10.0.0.5:8000"),
        (HEAD + "  - url: ftp://a", "servers.0.url: "),
        (HEAD + "  - url: unix:admin.sock", "servers.0.url: expected unix: and the absolute path of an admin socket"),
        (HEAD + "  - url: http://user:secret@a", "servers.0.url: expected a URL without user and password"),
        (HEAD + "  - url: http://a:port", "servers.0.url: expected the base URL of a server, got 'http://a:port'"),
        (HEAD + "  - url: http://a?x=1", "servers.0.url: "),
        (HEAD + "  - {url: 'http://a', admin_key: secret}", "admin_key"),
        (HEAD + "  - {url: 'http://a', name: ''}", "servers.0.name: "),
        (HEAD + "  - url: http://a\n  - url: http://a/", "expected each server once, got the URL 'http://a' twice"),
        (HEAD + "  - {url: 'http://a', name: x}\n  - {url: 'http://b', name: x}", "got the name 'x' twice"),
        ("{", "expected YAML"),
        ("x: !!python/object/apply:os.system [ls]", "expected YAML"),
    ],
)
def test_what_is_no_list_is_refused(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(FormatError) as error:
        read_fleet(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert "secret@" not in str(error.value)


def test_urls_are_checked_alike() -> None:
    with pytest.raises(FormatError, match=r"--url: .*expected the base URL of a server"):
        servers_at(["http://a", "b:8000"])
    with pytest.raises(FormatError, match="--url: expected each server once"):
        servers_at(["http://a", "http://a"])


def test_each_server_may_have_a_key_of_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(HEAD + "  - url: http://a\n  - {url: 'http://b', admin_key_variable: KEY_OF_B}")
    monkeypatch.setenv("UNLEARN_ADMIN_KEY", "a")
    with pytest.raises(ServingError, match="KEY_OF_B"):
        require_admin_keys(read_fleet(path))
    monkeypatch.setenv("KEY_OF_B", "b")
    require_admin_keys(read_fleet(path))
