"""R6 to R8: what a reader gets is what was published, or an error that says what is wrong."""

from pathlib import Path

import pytest
import torch
from format.tiny import random_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unlearn_serve.errors import DigestError, ReleaseNotFound, StoreError
from unlearn_serve.format import tensor_names
from unlearn_serve.store import Store

SITE = "model.layers.3.mlp"


def release_file(store: Store, digest: str, name: str) -> Path:
    return Path(store.url) / "releases" / digest / name


def test_loads_what_was_published(store: Store, releases: list[str]) -> None:
    release = store.load_release(releases[1])
    expected = random_tensors(seed=1)
    down, up = tensor_names(SITE)
    assert torch.equal(release.tensors.w_down[3], expected[down])
    assert torch.equal(release.tensors.w_up[3], expected[up])
    assert release.manifest.deletion_ids == ("case-17",)


def test_lists_visible_releases_oldest_first(store: Store, releases: list[str]) -> None:
    found = store.releases()
    assert sorted(info.digest for info in found) == sorted(releases)
    assert [info.published_at for info in found] == sorted(info.published_at for info in found)
    assert [info.manifest.deletion_ids for info in found if info.manifest] == [("case-17",)] * 3


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), number=st.integers(0, 2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_flipped_bit_is_a_digest_error(
    store: Store, releases: list[str], place: float, bit: int, number: int
) -> None:
    """R6."""
    name = ["adapter_config.json", "adapter_model.safetensors", "manifest.json"][number]
    path = release_file(store, releases[0], name)
    right = path.read_bytes()
    data = bytearray(right)
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        with pytest.raises(DigestError, match=rf"{releases[0]}.*expected") as error:
            store.load_release(releases[0])
        assert "\n" not in str(error.value)
        assert len(store.verify(releases[0])) == 1
    finally:
        path.write_bytes(right)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("manifest.json", b"", "manifest.json: expected bytes with the release's sha256, got e3b0c44298fc"),
        ("manifest.json", b" " * (2**22 + 1), "manifest.json: expected at most 4194304 bytes, got 4194305"),
        ("adapter_config.json", b"{}", r"adapter_config.json: expected \d+ bytes as the manifest says, got 2"),
        ("adapter_config.json", b"{" * 9999, r"adapter_config.json: expected at most \d+ bytes, got 9999"),
        ("adapter_model.safetensors", None, r"safetensors: expected a file of \d+ bytes, got none; publish the rel"),
    ],
)
def test_corrupt_release_says_what_is_wrong(
    store: Store, releases: list[str], name: str, change: bytes | None, message: str
) -> None:
    """R6."""
    path = release_file(store, releases[0], name)
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change)
    with pytest.raises(DigestError, match=message):
        store.load_release(releases[0])
    assert store.load_release(releases[1]).digest == releases[1]


def test_listing_goes_on_past_a_broken_manifest(store: Store, releases: list[str]) -> None:
    release_file(store, releases[0], "manifest.json").write_bytes(b"{}")
    found = {info.digest: info for info in store.releases()}
    assert found[releases[0]].manifest is None
    assert "expected bytes with the release's sha256" in str(found[releases[0]].problem)
    assert found[releases[1]].problem is None


def test_a_release_under_anothers_name_is_refused(store: Store, releases: list[str]) -> None:
    """R1 and R6: a sound release, copied to another name by hand."""
    stolen = Path(store.url) / "releases" / ("0" * 64)
    release_file(store, releases[0], "").rename(stolen)
    with pytest.raises(DigestError, match="expected bytes with the release's sha256"):
        store.load_release("0" * 64)


NOT_DIGESTS = ["", "abc", "../../../etc", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "0" * 62 + "/x", "é" * 64]


@pytest.mark.parametrize("digest", NOT_DIGESTS)
def test_what_is_no_digest_never_becomes_a_path(store: Store, digest: str) -> None:
    """R7."""
    message = "release: expected 64 lower-case hexadecimal digits, got "
    for read in (store.load_release, store.load_manifest, store.verify):
        with pytest.raises(ReleaseNotFound, match=message):
            read(digest)
    with pytest.raises(ReleaseNotFound, match=message):
        store.promote(digest, "production", actor="test")


def test_a_unique_prefix_names_a_release(store: Store, releases: list[str]) -> None:
    """R8."""
    assert store.resolve(releases[2][:8]) == releases[2]
    assert store.resolve(releases[2]) == releases[2]
    with pytest.raises(ReleaseNotFound, match="expected 8 to 64 lower-case hexadecimal digits, got "):
        store.resolve(releases[2][:7])
    with pytest.raises(ReleaseNotFound, match="8 to 64"):
        store.resolve("../" + "0" * 20)
    with pytest.raises(ReleaseNotFound, match="holds no release 00000000"):
        store.resolve("0" * 8)


def test_an_ambiguous_prefix_is_refused(store: Store, releases: list[str]) -> None:
    """R8."""
    for last in "01":
        path = Path(store.url) / "releases" / ("0" * 63 + last)
        path.mkdir()
        (path / "manifest.json").write_bytes(b"{}")
    with pytest.raises(StoreError, match=r"release 00000000 is ambiguous: 0{64}, 0{63}1; give more digits"):
        store.resolve("0" * 8)


def test_a_prefix_of_half_a_release_names_nothing(store: Store) -> None:
    """R3."""
    path = Path(store.url) / "releases" / ("0" * 64)
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_bytes(b"{}")
    with pytest.raises(ReleaseNotFound):
        store.resolve("0" * 64)
    assert store.releases() == []
