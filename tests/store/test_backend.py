"""Opening a store, and what its errors look like from outside: ours, on one line, with the way out."""

import os
from pathlib import Path

import pytest
from obstore.store import HTTPStore, LocalStore, MemoryStore

import unlearn_serve.store
from unlearn_serve.errors import DigestError, StoreError, StoreUnavailable
from unlearn_serve.store import Backend, Store


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_opens_a_folder(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "a b" / "store"
    url = form.format(str(folder).replace(" ", "%20") if form != "{}" else folder)
    with pytest.raises(StoreUnavailable, match="no such folder; check the path, or publish to it to create it"):
        Store.open(url)
    assert not folder.exists()
    assert Store.open(url, create=True).releases() == []
    assert Store.open(url).url == url
    assert folder.is_dir()


def test_opens_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapters: list[Path]) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.open("store", create=True)
    monkeypatch.chdir("/")
    digest = store.publish(adapters[0])
    assert (tmp_path / "store" / "releases" / digest).is_dir()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", "expected a path or a URL of file://, s3://.*, got ftp://"),
        ("http://host/x", "expected a path or a URL of .* got http://"),
        ("memory:///", "expected a path or a URL of .* got memory://"),
        ("file://host/x", "expected file:///absolute/path"),
        ("file://", "expected file:///absolute/path"),
        ("s3://", "store 's3://': .*check that it is reachable and that the credentials allow this"),
    ],
)
def test_refused_urls(url: str, message: str) -> None:
    with pytest.raises(StoreUnavailable, match=message) as error:
        Store.open(url, create=True)
    assert "\n" not in str(error.value)


def test_object_stores_open_through_the_same_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for url in ("s3://bucket/prefix", "gs://bucket/prefix", "az://container/prefix"):
        assert Store.open(url).url == url


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="expected a folder, got a file"):
        Store.open(str(tmp_path / "file"), create=True)


def test_a_folder_that_went_away_is_not_an_empty_store(tmp_path: Path, adapters: list[Path]) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    digest = store.publish(adapters[0])
    store.promote(digest, "production", actor="ann")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    for call in (
        store.releases,
        store.channels,
        store.verify,
        lambda: store.load_release(digest),
        lambda: store.channel("production"),
        lambda: store.channel_after("production", 1),
        lambda: store.channel_after("production", 0),
        lambda: store.publish(adapters[0]),
        lambda: store.promote(digest, "production", actor="ann"),
    ):
        with pytest.raises(StoreUnavailable, match="its folder is gone; is the disk mounted"):
            call()
    assert not (tmp_path / "store").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    assert store.channel("production").release == digest


def test_a_folder_that_cannot_be_written(tmp_path: Path, adapters: list[Path]) -> None:
    (tmp_path / "releases").write_text("a file where a folder should be")
    with pytest.raises(StoreUnavailable, match="check that it is reachable") as error:
        Store.open(str(tmp_path)).publish(adapters[0])
    assert "\n" not in str(error.value)


def test_an_unreachable_store_is_unavailable() -> None:
    """A port of this machine on which nobody listens: refused at once, and without the library's own error types."""
    remote = HTTPStore("http://127.0.0.1:9", client_options={"allow_http": True}, retry_config={"max_retries": 0})
    store = Store(Backend(remote, name="http://127.0.0.1:9"))
    for call in (lambda: store.load_manifest("0" * 64), store.releases, lambda: store.channel("production")):
        with pytest.raises(StoreUnavailable, match=r"store 'http://127.0.0.1:9': ") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_put_if_absent_and_replace(tmp_path: Path, kind: str) -> None:
    backend = Backend(LocalStore(prefix=tmp_path) if kind == "folder" else MemoryStore(), name=kind)
    assert backend.read("a/b", limit=9) is None
    assert backend.create("a/b", b"one") is True
    assert backend.create("a/b", b"two") is False
    assert backend.read("a/b", limit=3) == b"one"
    with pytest.raises(DigestError, match="a/b: expected at most 2 bytes, got 3"):
        backend.read("a/b", limit=2)
    backend.replace("a/b", b"three")
    assert backend.read("a/b", limit=5) == b"three"
    backend.create("a/c", b"")
    assert [(one.path, one.size) for one in backend.objects("a")] == [("a/b", 5), ("a/c", 0)]
    assert [one.path for one in backend.objects("a", after="a/b")] == ["a/c"]
    assert backend.objects("nowhere") == []
    assert backend.children("a") == ["b", "c"]


def test_replace_does_not_write_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("precious")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a").symlink_to(tmp_path / "outside")
    backend = Backend(LocalStore(prefix=tmp_path / "store"), name="store")
    assert backend.create("a", b"x") is False
    backend.replace("a", b"x")
    assert (tmp_path / "outside").read_text() == "precious"
    assert not (tmp_path / "store" / "a").is_symlink()


def test_leftovers_of_a_killed_put_are_not_seen(tmp_path: Path, adapters: list[Path]) -> None:
    """obstore writes a folder's objects under a name with '#' first; a killed writer leaves that behind."""
    store = Store.open(str(tmp_path), create=True)
    digest = store.publish(adapters[0])
    (tmp_path / "releases" / digest / "manifest.json#1").write_bytes(b"half")
    assert store.verify() == []
    assert store.publish(adapters[0]) == digest


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_is_unavailable(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    (tmp_path / "releases").mkdir(mode=0)
    with pytest.raises(StoreError):
        store.releases()


def test_public_names() -> None:
    assert unlearn_serve.store.__all__ == [
        "AuditRecord",
        "Backend",
        "ChannelEntry",
        "Garbage",
        "Problem",
        "Release",
        "ReleaseInfo",
        "Store",
    ]
    assert all(hasattr(unlearn_serve.store, name) for name in unlearn_serve.store.__all__)
