"""`verify` finds everything that is wrong with a store, and nothing in one that is sound."""

import shutil
from pathlib import Path

import pytest
from format.tiny import edited

from unlearn_serve.errors import ReleaseNotFound
from unlearn_serve.store import Backend, Store


@pytest.fixture
def moved(store: Store, releases: list[str]) -> Store:
    """A store with three releases and a channel of four generations."""
    for digest in releases:
        store.promote(digest, "production", actor="ann")
    store.rollback("production", actor="bob")
    return store


def entry(store: Store, generation: int) -> Path:
    return Path(store.url) / "channels" / "production" / f"{generation:020d}.json"


def found(store: Store) -> list[str]:
    return [str(problem) for problem in store.verify()]


def test_a_sound_store_has_no_problems(moved: Store, releases: list[str]) -> None:
    assert moved.verify() == []
    assert [moved.verify(digest) for digest in releases] == [[], [], []]


def test_an_empty_store_has_no_problems(store: Store) -> None:
    assert store.verify() == []


def test_one_release_that_is_not_there(moved: Store) -> None:
    with pytest.raises(ReleaseNotFound):
        moved.verify("0" * 64)


def test_all_problems_are_reported_at_once(moved: Store, releases: list[str]) -> None:
    root = Path(moved.url)
    (root / "releases" / releases[0] / "adapter_config.json").write_bytes(b"{}")
    (root / "releases" / releases[1] / "manifest.json").write_bytes(b"{}")
    (root / "releases" / releases[2] / "grams.safetensors").write_bytes(b"must not be here")
    (root / "releases" / "latest").mkdir()
    (root / "releases" / "latest" / "manifest.json").write_bytes(b"{}")
    (root / "channels" / "production" / "readme.txt").write_bytes(b"")
    entry(moved, 3).write_bytes(b"{}")
    problems = found(moved)
    assert all("\n" not in problem for problem in problems)
    expected = {
        f"releases/{releases[0]}: release {releases[0]}: adapter_config.json: expected",
        f"releases/{releases[1]}: releases/{releases[1]}/manifest.json: expected bytes with the release's sha256",
        f"releases/{releases[2]}/grams.safetensors: expected only a release's three files here",
        "releases/latest/manifest.json: expected only a release's three files here",
        "channels/production/readme.txt: expected only channels' generations here",
        f"channels/production/{3:020d}.json: channels/production/{3:020d}.json: schema: expected",
    }
    assert len(problems) == len(expected)
    for start in expected:
        assert any(problem.startswith(start) for problem in problems), start


def test_a_gap_in_the_generations(moved: Store) -> None:
    """C3."""
    entry(moved, 2).unlink()
    assert [f"{2:020d}.json" in problem and "history has a gap" in problem for problem in found(moved)] == [True]


def test_a_generation_of_a_lost_release(moved: Store, releases: list[str]) -> None:
    shutil.rmtree(Path(moved.url) / "releases" / releases[0])
    (problem,) = found(moved)
    assert f"{1:020d}.json: names release {releases[0]}, which the store does not hold" in problem


def test_a_rollback_that_restores_what_was_never_promoted(moved: Store) -> None:
    """C6."""
    path = entry(moved, 4)
    path.write_bytes(edited(path.read_bytes(), lambda document: document.update(restores_generation=1)))
    (problem,) = found(moved)
    assert "restores generation 1, which did not promote this release" in problem


def test_a_half_release_is_no_problem(moved: Store) -> None:
    """R3: it may be one that is being published now."""
    path = Path(moved.url) / "releases" / ("0" * 64)
    path.mkdir()
    (path / "adapter_config.json").write_bytes(b"{}")
    assert moved.verify() == []


def test_it_needs_no_right_to_write(moved: Store) -> None:
    """An auditor's credential can only read: nothing is written, not even a temporary object."""

    class ReadOnly(Backend):
        def create(self, path: str, data: bytes) -> bool:
            raise AssertionError(path)

        def replace(self, path: str, data: bytes) -> None:
            raise AssertionError(path)

        def delete(self, path: str) -> None:
            raise AssertionError(path)

    before = sorted((path, path.stat().st_mtime_ns) for path in Path(moved.url).rglob("*"))
    assert Store(ReadOnly.open(moved.url)).verify() == []
    assert sorted((path, path.stat().st_mtime_ns) for path in Path(moved.url).rglob("*")) == before
