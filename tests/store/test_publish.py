"""R1 to R5: publishing is all or nothing for readers, whatever happens to the publisher."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from format.tiny import write_adapter
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import LocalStore, MemoryStore
from store.faults import Death, DyingBackend, Killed

from unlearn_serve.errors import AdapterFileError, DigestError, FormatError, ManifestError, ReleaseNotFound
from unlearn_serve.format import Manifest, write_manifest
from unlearn_serve.store import Backend, Store

FILES = ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
deaths = st.sampled_from(["before", "after", "torn"])


def content(root: Path) -> dict[str, bytes]:
    """All files but the store's own log, which has tests of its own."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.parent.name != "audit")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def digest_of(adapter: Path) -> str:
    return Manifest.from_bytes((adapter / "manifest.json").read_bytes()).digest


def assert_invisible(store: Store, digest: str) -> None:
    assert store.releases() == []
    assert store.verify() == []
    for read in (store.load_release, store.load_manifest, store.verify, lambda d: store.resolve(d[:8])):
        with pytest.raises(ReleaseNotFound, match=f"holds no release {digest[:8]}"):
            read(digest)
    with pytest.raises(ReleaseNotFound):
        store.promote(digest, "production", actor="test")
    assert store.channels() == []


def test_a_release_is_its_three_files_under_the_manifests_digest(tmp_path: Path, adapters: list[Path]) -> None:
    """R1."""
    digest = Store.open(str(tmp_path / "store"), create=True).publish(adapters[0])
    assert digest == digest_of(adapters[0])
    assert content(tmp_path / "store") == {
        f"releases/{digest}/{name}": (adapters[0] / name).read_bytes() for name in FILES
    }


def test_grams_and_other_files_are_never_published(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "grams.safetensors").write_bytes(b"derived from what is to be forgotten")
    Store.open(str(tmp_path / "store"), create=True).publish(tmp_path / "adapter")
    assert sorted(Path(path).name for path in content(tmp_path / "store")) == FILES


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("death", ["before", "after"])
def test_killed_at_any_put_on_a_folder(tmp_path: Path, adapters: list[Path], at: int, death: Death) -> None:
    """R3 and R4 on the real folder, whose puts are atomic: invisible until the last put is done, then complete."""
    store = Store.open(str(tmp_path / "store"), create=True)
    with pytest.raises(Killed):
        Store(DyingBackend(LocalStore(prefix=tmp_path / "store"), at=at, death=death)).publish(adapters[0])
    digest = digest_of(adapters[0])
    if (at, death) == (3, "after"):
        assert store.load_release(digest).digest == digest
    else:
        assert_invisible(store, digest)
    assert store.publish(adapters[0]) == digest
    assert store.load_release(digest).manifest.digest == digest
    assert store.verify() == []


@given(kills=st.lists(st.tuples(st.integers(0, 5), deaths), max_size=4))
def test_killed_again_and_again_then_completed(adapters: list[Path], kills: list[tuple[int, Death]]) -> None:
    """R3, R4, R5: also on a store that tears objects, no half release ever loads, and a whole publish mends it."""
    memory = MemoryStore()
    store = Store(Backend(memory, name="memory"))
    digest = digest_of(adapters[0])
    for at, death in kills:
        complete = False
        try:
            Store(DyingBackend(memory, at=at, death=death)).publish(adapters[0])
            complete = True
        except Killed:
            pass
        visible = [info.digest for info in store.releases() if info.problem is None]
        if complete:
            assert visible == [digest]
        try:
            assert store.load_release(digest).manifest.digest == digest
        except (ReleaseNotFound, DigestError):
            assert not complete
    assert store.publish(adapters[0]) == digest
    assert store.load_release(digest).digest == digest
    assert store.verify() == []


@given(left=st.tuples(*[st.sampled_from(["absent", "right", "shorter", "longer", "flipped", "empty"])] * 3))
def test_whatever_lies_there_is_never_trusted(adapters: list[Path], left: tuple[str, ...]) -> None:
    """R5: objects under the release's name are compared, and replaced where their bytes are wrong."""
    memory = MemoryStore()
    digest = digest_of(adapters[0])
    for name, state in zip(FILES, left, strict=True):
        right = (adapters[0] / name).read_bytes()
        wrong = {
            "right": right,
            "shorter": right[:-1],
            "longer": right + b"\x00",
            "flipped": bytes([right[0] ^ 1]) + right[1:],
            "empty": b"",
        }
        if state != "absent":
            memory.put(f"releases/{digest}/{name}", wrong[state])
    store = Store(Backend(memory, name="memory"))
    assert store.publish(adapters[0]) == digest
    for name in FILES:
        assert memory.get(f"releases/{digest}/{name}").bytes() == (adapters[0] / name).read_bytes()
    assert store.verify() == []


def test_replacing_wrong_bytes_is_reported(
    store: Store, adapters: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    digest = store.publish(adapters[0])
    path = Path(store.url) / "releases" / digest / "adapter_model.safetensors"
    path.write_bytes(b"tampered")
    with caplog.at_level(logging.WARNING):
        store.publish(adapters[0])
    assert caplog.messages == [
        f"releases/{digest}/adapter_model.safetensors held other bytes than its name says; replaced by the right ones"
    ]


def test_publishing_again_writes_nothing(tmp_path: Path, store: Store, adapters: list[Path]) -> None:
    """R4."""
    digest = store.publish(adapters[0])
    before = {path: path.stat().st_mtime_ns for path in Path(store.url).rglob("*.*")}
    assert store.publish(adapters[0]) == digest
    assert {path: path.stat().st_mtime_ns for path in Path(store.url).rglob("*.*")} == before


@pytest.mark.parametrize("name", FILES)
def test_a_broken_adapter_writes_nothing(tmp_path: Path, store: Store, name: str) -> None:
    """R2."""
    write_adapter(tmp_path / "adapter")
    data = bytearray((tmp_path / "adapter" / name).read_bytes())
    data[-2] ^= 1
    (tmp_path / "adapter" / name).write_bytes(data)
    with pytest.raises(ManifestError if name == "manifest.json" else DigestError):
        store.publish(tmp_path / "adapter")
    (tmp_path / "adapter" / name).unlink()
    with pytest.raises(AdapterFileError, match=f"{name}: expected a file of an adapter directory"):
        store.publish(tmp_path / "adapter")
    assert content(Path(store.url)) == {}


def test_copy_brings_a_verified_release_and_no_other(tmp_path: Path, store: Store, releases: list[str]) -> None:
    other = Store.open(str(tmp_path / "other"), create=True)
    other.copy_release(releases[1], store)
    assert [info.digest for info in other.releases()] == [releases[1]]
    assert other.load_release(releases[1]).manifest == store.load_manifest(releases[1])
    (Path(store.url) / "releases" / releases[0] / "adapter_config.json").write_bytes(b"{}")
    with pytest.raises(FormatError):
        other.copy_release(releases[0], store)
    assert [info.digest for info in other.releases()] == [releases[1]]
    assert sorted((tmp_path / "other" / "releases").iterdir()) == [tmp_path / "other" / "releases" / releases[1]]


def test_other_evaluation_is_another_release(tmp_path: Path, store: Store) -> None:
    manifest = write_adapter(tmp_path / "adapter")
    one = store.publish(tmp_path / "adapter")
    write_manifest(tmp_path / "adapter", manifest.model_copy(update={"evaluation": None}))
    two = store.publish(tmp_path / "adapter")
    assert one != two
    assert {info.digest for info in store.releases()} == {one, two}


PUBLISH_AND_DIE = """
import sys
from pathlib import Path
from obstore.store import LocalStore
from store.faults import DyingBackend
from unlearn_serve.store import Store
root, adapter, at = sys.argv[1:]
Store(DyingBackend(LocalStore(prefix=root), at=int(at), signal_self=True)).publish(Path(adapter))
"""


def test_a_process_that_is_really_killed_leaves_nothing_visible(tmp_path: Path, adapters: list[Path]) -> None:
    """R3, with SIGKILL between the adapter's files and the manifest."""
    store = Store.open(str(tmp_path / "store"), create=True)
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", PUBLISH_AND_DIE, str(tmp_path / "store"), str(adapters[0]), "2"]
    died = subprocess.run(command, env={"PYTHONPATH": tests}, capture_output=True, text=True, check=False)
    assert died.returncode == -9, died.stderr
    assert len(content(tmp_path / "store")) == 2
    assert_invisible(store, digest_of(adapters[0]))
    store.publish(adapters[0])
    assert store.verify() == []
