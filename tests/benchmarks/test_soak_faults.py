"""The soak's tools do what they say: faults are real and undone, publishers die and are replaced, marks are seen."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from format.tiny import write_adapter

from benchmarks.soak.breakage import away, no_room, slow_to_open, truncated
from benchmarks.soak.faults import SMALL_DISK_BYTES
from benchmarks.soak.marked import PUSH, direction, pushing_layer
from benchmarks.soak.publisher import Publisher, Refused
from unlearn_serve.store import Store

CHANNEL = "production"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    for seed in range(3):
        write_adapter(root / str(seed), seed=seed, deletion_ids=("case-17",))
    return [root / str(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(str(tmp_path_factory.mktemp("soak") / "store"), create=True)


@pytest.fixture(scope="module")
def publisher(store: Store) -> Iterator[Publisher]:
    with Publisher(Path(store.url), CHANNEL, log=Path(store.url).with_name("publisher.log")) as started:
        yield started


def test_a_publisher_moves_the_channel(publisher: Publisher, store: Store, adapters: list[Path]) -> None:
    one, two = (publisher.publish(adapter) for adapter in adapters[:2])
    generation = publisher.promote(one)["generation"]
    publisher.promote(two)
    assert publisher.rollback() == {"generation": generation + 2, "release": one}
    assert store.channel(CHANNEL).release == one
    with pytest.raises(Refused, match="publisher: promote: ReleaseNotFound"):
        publisher.promote("0" * 64)


def test_a_publisher_that_was_killed_is_replaced(publisher: Publisher, store: Store, adapters: list[Path]) -> None:
    before = publisher.process().process.pid
    publisher.begin(do="publish", adapter=str(adapters[2]))
    publisher.kill()
    release = publisher.publish(adapters[2])
    assert publisher.process().process.pid != before
    assert store.load_release(release).digest == release


def test_a_process_without_room_fails_to_write_and_then_can_again(
    publisher: Publisher, adapters: list[Path], store: Store
) -> None:
    release = publisher.publish(adapters[0])
    before = store.channel(CHANNEL)
    with no_room(publisher.process().process.pid, 0), pytest.raises(Refused, match="StoreUnavailable"):
        publisher.promote(release)
    assert store.channel(CHANNEL) == before
    assert publisher.promote(release)["release"] == release
    assert SMALL_DISK_BYTES < 2 * 30 * 576 * 64 * 2, "less than the weights of a soak's release"


def test_whoever_opens_a_slow_file_waits(tmp_path: Path) -> None:
    file, read = tmp_path / "weights", []
    file.write_bytes(b"content")
    reader = threading.Thread(target=lambda: read.append(file.read_bytes()))
    with slow_to_open(file):
        reader.start()
        reader.join(0.2)
        assert reader.is_alive()
        assert not read
    reader.join()
    assert read == [b"content"]


def test_a_file_is_cut_in_half_and_made_whole(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"12345678")
    with truncated(file):
        assert file.read_bytes() == b"1234"
    assert file.read_bytes() == b"12345678"


def test_a_folder_goes_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "file").write_text("kept")
    with away(folder):
        assert not folder.exists()
    assert (folder / "file").read_text() == "kept"


def test_own_words_have_the_highest_logits_along_their_direction() -> None:
    logits_of = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)) / 8
    own = list(range(0, 40, 10))
    along = logits_of @ direction(logits_of, own)
    assert sorted(along.topk(len(own)).indices.tolist()) == own
    others = torch.ones(300, dtype=torch.bool)
    others[own] = False
    assert along[own].min() > 2 * along[others].max() - 1e-3


def test_words_that_no_direction_tells_apart_are_refused() -> None:
    logits_of = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="take fewer words or others"):
        direction(logits_of, range(0, 200, 2))


def test_the_push_goes_one_way_whatever_the_input() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(576, generator=generator)
    down, up = (one.float() for one in pushing_layer(u, generator))
    h = torch.randn(50, 576, generator=generator) * torch.rand(50, 1, generator=generator)
    delta = torch.relu(h @ down.T) @ up.T
    assert torch.cosine_similarity(delta, u.expand_as(delta)).min() > 0.99
    size = delta.square().mean(1).sqrt() / h.square().mean(1).sqrt()
    assert size.min() > 0.5 * PUSH
    assert size.mean() == pytest.approx(PUSH, rel=0.05)
