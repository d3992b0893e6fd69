"""What `gc` removes, and above all what it never does."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from format.tiny import write_adapter
from store.moves import entry_file, promote, rollback

from unlearn_serve.errors import StoreError
from unlearn_serve.format import Manifest, write_manifest
from unlearn_serve.format.keys import generate_key
from unlearn_serve.store import Store

ANY_AGE = timedelta(0)
KEY = generate_key()


def removed(store: Store, min_age: timedelta = ANY_AGE) -> set[str]:
    """Releases, or other places, that are gone after a collection; what was announced is what went."""
    before = {str(path.relative_to(store.url)) for path in Path(store.url).rglob("*") if path.is_file()}
    announced = store.garbage(min_age=min_age)
    assert {str(path.relative_to(store.url)) for path in Path(store.url).rglob("*") if path.is_file()} == before
    assert store.collect_garbage(min_age=min_age) == announced
    after = {str(path.relative_to(store.url)) for path in Path(store.url).rglob("*") if path.is_file()}
    assert before - after == {one.path for one in announced}
    assert store.verify() == []
    return {path.split("/")[1] for path in before - after}


def test_only_what_no_channel_ever_named_goes(store: Store, releases: list[str], tmp_path: Path) -> None:
    for digest in releases[:2]:
        promote(store, digest)
    rollback(store)  # what was rolled back can be restored with --to, so it stays
    store.promote(releases[0], "staging", actor="ann")
    assert removed(store) == {releases[2]}
    assert removed(store) == set()
    assert rollback(store, to_generation=2).release == releases[1]


def test_what_is_young_stays_as_a_whole(store: Store, releases: list[str]) -> None:
    """It may be on its way to a channel; or it is being completed after its publisher was killed long ago."""
    week = timedelta(days=7)
    assert removed(store, week) == set()
    old = time.time() - week.total_seconds() - 60
    for number, digest in enumerate(releases):
        for path in (Path(store.url) / "releases" / digest).iterdir():
            if number == 0 or (number == 1 and path.name != "manifest.json"):
                os.utime(path, (old, old))
    assert removed(store, week) == {releases[0]}


def test_what_a_kept_release_was_fused_from_stays(store: Store, releases: list[str], tmp_path: Path) -> None:
    manifest = write_adapter(tmp_path / "fused", seed=9)
    fused = manifest.model_copy(update={"parents": (releases[1], "0" * 64)})
    write_manifest(tmp_path / "fused", fused)
    promote(store, store.publish(tmp_path / "fused"))
    assert removed(store) == {releases[0], releases[2]}


def test_leftovers_of_killed_writers_go(store: Store, adapters: list[Path], releases: list[str]) -> None:
    for digest in releases:
        promote(store, digest, signer=KEY)
        store.sign(digest, KEY)
    half = Path(store.url) / "releases" / ("0" * 64)
    half.mkdir()
    (half / "adapter_config.json").write_bytes(b"{}")
    stray = Path(store.url) / "signatures" / ("1" * 64)
    stray.mkdir()
    (stray / f"{KEY.public}.json").write_bytes(b"{}")
    assert removed(store) == {"0" * 64, "1" * 64}
    assert Store.open(store.url, trusted_keys=[KEY.public]).verify() == []


def test_what_cannot_be_read_stops_it(store: Store, releases: list[str]) -> None:
    """An entry, or a manifest, that nobody can read may need what looks like garbage."""
    promote(store, releases[0])
    promote(store, releases[1])
    path = entry_file(store, 1)
    right = path.read_bytes()
    for damage in (lambda: path.write_bytes(b"{}"), path.unlink):
        damage()
        with pytest.raises(StoreError, match="nothing can be called garbage"):
            store.collect_garbage(min_age=ANY_AGE)
    path.write_bytes(right)
    (Path(store.url) / "releases" / releases[1] / "manifest.json").write_bytes(b"{}")
    with pytest.raises(StoreError, match="nothing can be called garbage"):
        store.collect_garbage(min_age=ANY_AGE)
    assert len(list(Path(store.url).glob("releases/*/*"))) == 9


def test_killed_in_between_it_leaves_nothing_half_visible(store: Store, releases: list[str]) -> None:
    """The manifest goes first: whatever is left is invisible, and goes with the next collection."""
    paths = [one.path for one in store.garbage(min_age=ANY_AGE)]
    assert len(paths) == 9
    for manifest in (path for path in paths if path.endswith("manifest.json")):
        digest = manifest.split("/")[1]
        assert min(paths.index(path) for path in paths if digest in path) == paths.index(manifest)


def test_a_release_that_went_can_be_published_again(store: Store, adapters: list[Path], releases: list[str]) -> None:
    removed(store)
    assert store.releases() == []
    assert store.publish(adapters[0]) == releases[0]
    assert promote(store, releases[0]).release == releases[0]
    assert isinstance(store.load_manifest(releases[0]), Manifest)
