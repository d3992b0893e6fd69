"""Bad artifacts by the hundred: each is refused by the reader and by a publisher, with its own class of error."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from format.tiny import canonical

from attacks.generate import CONFIG, MANIFEST, TENSORS, Attack, Sound, attacks
from unlearn_serve.errors import AdapterFileError, DigestError, FormatError, UnlearnServeError
from unlearn_serve.format import Manifest, read_adapter_dir
from unlearn_serve.store import Store

ALL = attacks()


def test_there_are_many_and_each_is_another(sound: Sound) -> None:
    assert len({attack.name for attack in ALL}) == len(ALL) >= 200
    made = {tuple(attack.make(sound).items()) for attack in ALL}
    assert len(made) == len(ALL)
    assert tuple(sound.files.items()) not in made


def test_the_sound_one_is_read(sound: Sound, tmp_path: Path) -> None:
    """So that the others are refused for what was changed."""
    write(tmp_path, sound.files)
    assert read_adapter_dir(tmp_path)[0].deletion_ids == ("case-17",)


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.name)
def test_it_is_refused(sound: Sound, tmp_path: Path, attack: Attack) -> None:
    write(tmp_path / "adapter", attack.make(sound))
    store = Store.open(str(tmp_path / "store"), create=True)
    for read in (read_adapter_dir, store.publish):
        with pytest.raises(UnlearnServeError) as error:
            read(tmp_path / "adapter")
        assert type(error.value) is attack.error, error.value
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
        str(error.value).encode()  # printable wherever it goes
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("attack", ALL[::7], ids=lambda attack: attack.name)
def test_put_into_a_store_past_the_publisher_it_is_refused(sound: Sound, tmp_path: Path, attack: Attack) -> None:
    """Whoever can write to the store names the release by its manifest's true digest."""
    import hashlib

    files = attack.make(sound)
    digest = hashlib.sha256(files[MANIFEST]).hexdigest()
    write(tmp_path / "releases" / digest, files)
    store = Store.open(str(tmp_path))
    for read in (store.load_release, lambda digest: store.promote(digest, "production", actor="thief")):
        with pytest.raises(FormatError):
            read(digest)
    assert [problem.where for problem in store.verify()] == [f"releases/{digest}"]
    assert store.channels() == []


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": lambda path: bind(path),
    "link-to-nowhere": lambda path: path.symlink_to("nowhere"),
    "link-to-itself": lambda path: path.symlink_to(path.name),
    "link-to-a-secret": lambda path: path.symlink_to("/etc/passwd"),
    "link-up": lambda path: path.symlink_to("../../../../../../etc/passwd"),
    "sparse": lambda path: sparse(path, 2**45),
}


@pytest.mark.parametrize("name", [CONFIG, TENSORS, MANIFEST])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_plain_file_of_that_content(sound: Sound, tmp_path: Path, name: str, kind: str) -> None:
    """In an adapter's folder and in a store that somebody else can write to: never waited for, never read out."""
    digest = Manifest.from_bytes(sound.files[MANIFEST]).digest
    release = tmp_path / "store" / "releases" / digest
    for folder in (tmp_path / "a", release):
        write(folder, sound.files)
        (folder / name).unlink()
        SPECIAL[kind](folder / name)
    store = Store.open(str(tmp_path / "store"))
    expected = {"link-to-a-secret", "link-up"} & {kind} and (DigestError if name != MANIFEST else FormatError)
    with pytest.raises(expected or AdapterFileError) as error:
        read_adapter_dir(tmp_path / "a")
    assert "root:" not in str(error.value)
    with pytest.raises(UnlearnServeError) as error:
        store.load_release(digest)
    assert "root:" not in str(error.value)
    assert "\n" not in str(error.value)


def test_an_object_of_another_release_by_a_link(sound: Sound, tmp_path: Path) -> None:
    """A link inside the store shows other bytes under a release's name: its digest does not match."""
    store = Store.open(str(tmp_path / "store"), create=True)
    write(tmp_path / "a", sound.files)
    digest = store.publish(tmp_path / "a")
    weights = tmp_path / "store" / "releases" / digest / TENSORS
    (tmp_path / "other").write_bytes(bytes(len(sound.files[TENSORS])))
    weights.unlink()
    weights.symlink_to(tmp_path / "other")
    with pytest.raises(DigestError, match="expected sha256"):
        store.load_release(digest)


@pytest.mark.parametrize(
    "value", ["..", "../x", "/etc", "a/../b", "%2e%2e", "..%2f", "a\\b", "C:\\x", "a\x00", "~", "."]
)
def test_names_that_climb_never_become_paths(sound: Sound, tmp_path: Path, value: str) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    write(tmp_path / "a", sound.files)
    digest = store.publish(tmp_path / "a")
    before = sorted(tmp_path.rglob("*"))
    for call in (
        lambda: store.promote(digest, value, actor="thief"),
        lambda: store.rollback(value, actor="thief"),
        lambda: store.channel(value),
        lambda: store.load_release(value),
        lambda: store.promote(value, "production", actor="thief"),
    ):
        with pytest.raises(UnlearnServeError):
            call()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_deep_nesting_in_every_document_of_a_store(sound: Sound, tmp_path: Path, depth: int) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    write(tmp_path / "a", sound.files)
    digest = store.publish(tmp_path / "a")
    entry = store.promote(digest, "production", actor="ann")
    for path in (
        tmp_path / "store" / "channels" / "production" / f"{2:020d}.json",
        tmp_path / "store" / "audit" / f"{3:020d}.json",
        tmp_path / "store" / "signatures" / entry.digest / f"{'0' * 64}.json",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'{"a":' * depth + canonical(1) + b"}" * depth)
    with pytest.raises(FormatError):
        store.channel("production")
    assert len(store.verify()) == 2
    assert any("nested at most" in str(fault) or "at most" in str(fault) for fault in store.audit_faults())


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        # A socket's path may be no longer than 107 bytes.
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        try:
            file.truncate(size)
        except OSError:  # a file system without such files: as large as it takes
            file.truncate(2**33)
