"""Where admin keys come from, which are refused, and how one is told from what is none."""

from pathlib import Path

import pytest

from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving.admin_key import AdminKeys

OLD, NEW = "old-key-of-the-admin", "new-key-of-the-admin"


def in_variable(value: str) -> AdminKeys:
    return AdminKeys({"UNLEARN_ADMIN_KEY": value})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{OLD}\n")
    return path


@pytest.mark.parametrize("environment", [{}, {"UNLEARN_ADMIN_KEY": ""}], ids=["not set", "empty"])
def test_without_keys_nothing_is_one(environment: dict[str, str]) -> None:
    keys = AdminKeys(environment)

    assert not keys.on
    assert not keys.accept("")
    assert not keys.accept(OLD)
    with pytest.raises(NotEnforced, match="admin_listen x: expected admin keys in UNLEARN_ADMIN_KEY"):
        keys.require("admin_listen x")


def test_each_of_several_keys_is_one_and_nothing_else() -> None:
    keys = in_variable(f"{OLD}, {NEW}")

    assert keys.on
    assert keys.accept(OLD)
    assert keys.accept(NEW)
    for other in ("", OLD[:-1], OLD + "x", OLD.upper(), f"{OLD}, {NEW}", f"{OLD},{NEW}", "é" * 16):
        assert not keys.accept(other), other


def test_every_key_is_compared_in_constant_time_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No early end at the first match, and no comparison but `secrets.compare_digest`: time would tell the key."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    keys = in_variable(f"{OLD},{NEW}")
    monkeypatch.setattr("secrets.compare_digest", compare)
    for key in (OLD, NEW, "wrong"):
        compared.clear()
        keys.accept(key)
        assert len(compared) == 2
        assert {len(digest) for pair in compared for digest in pair} == {32}, "digests: the key's length is not told"


def test_a_file_is_read_anew_so_that_a_key_is_replaced_without_a_restart(file: Path) -> None:
    keys = AdminKeys({"UNLEARN_ADMIN_KEY_FILE": str(file)})
    assert keys.accept(OLD)

    file.write_text(f"{OLD}\n\n  {NEW}\n")
    assert keys.accept(OLD)
    assert keys.accept(NEW)

    file.write_text(NEW)
    assert not keys.accept(OLD)


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"short\n", b"\xff" * 20], ids=repr)
def test_a_file_that_holds_no_keys_ends_the_start_and_later_lets_nobody_in(file: Path, content: bytes | None) -> None:
    environment = {"UNLEARN_ADMIN_KEY_FILE": str(file)}
    running = AdminKeys(environment)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)

    with pytest.raises(NotEnforced, match="UNLEARN_ADMIN_KEY_FILE: expected"):
        AdminKeys(environment)
    with pytest.raises(NotEnforced):
        running.accept(OLD)


@pytest.mark.parametrize(
    "value", ["short", "x" * 257, f"{OLD},", f"{OLD},,{NEW}", "with a space in it", "naïve-admin-key-1234", " "]
)
def test_a_key_that_can_be_guessed_or_sent_wrongly_ends_the_start(value: str) -> None:
    with pytest.raises(NotEnforced, match="expected keys of 16 to 256 printable ASCII characters") as caught:
        in_variable(value)

    assert OLD not in str(caught.value), "no key in a log"


def test_an_api_key_is_no_admin_key() -> None:
    """Whoever may use the model would be the admin."""
    with pytest.raises(NotEnforced, match="expected keys that are no API keys"):
        AdminKeys({"UNLEARN_ADMIN_KEY": f"{NEW},{OLD}"}, inference_keys=["other", OLD])


def test_a_variable_and_a_file_together_end_the_start(file: Path) -> None:
    with pytest.raises(NotEnforced, match="got both"):
        AdminKeys({"UNLEARN_ADMIN_KEY": NEW, "UNLEARN_ADMIN_KEY_FILE": str(file)})
