"""The store on a real S3 protocol server: the same promises, held by conditional puts over HTTP."""

import hashlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from store.moves import promote, rollback
from support.s3 import SIGNED, environment_for, make_bucket, running_s3

from unlearn_serve.errors import ChannelConflict, DigestError, DowngradeRefused, StoreUnavailable, Unsigned
from unlearn_serve.format.keys import generate_key
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.last_applied import LastApplied
from unlearn_serve.serving.starting_point import find_starting_point
from unlearn_serve.store import Backend, Store

KEY = generate_key()
_numbers = itertools.count()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("s3") / "server.log"
    with running_s3(log) as url, pytest.MonkeyPatch.context() as environment:
        for name, value in environment_for(url).items():
            environment.setenv(name, value)
        yield url
    assert " 500 -" not in log.read_text(), "the S3 server itself failed"


@pytest.fixture
def url(s3: str) -> str:
    """A prefix in a bucket of its own, with a neighbour that must stay untouched."""
    bucket = f"bucket-{next(_numbers)}"
    make_bucket(s3, bucket)
    httpx.put(f"{s3}/{bucket}/neighbour", content=b"precious").raise_for_status()
    return f"s3://{bucket}/stores/one"


@pytest.fixture
def store(url: str) -> Store:
    return Store.open(url)


def test_the_server_enforces_put_if_absent(s3: str) -> None:
    """Without this nothing below would show anything: spoken by hand, past obstore."""
    make_bucket(s3, "by-hand")
    answers = [
        httpx.put(f"{s3}/by-hand/object", content=data, headers={**SIGNED, "If-None-Match": "*"}).status_code
        for data in (b"1", b"2")
    ]
    assert answers == [200, 412]
    assert httpx.get(f"{s3}/by-hand/object", headers=SIGNED).content == b"1"


def test_objects(url: str) -> None:
    backend = Backend.open(url)
    assert backend.objects("a") == []
    assert backend.read("a/b", limit=9) is None
    assert (backend.create("a/b", b"one"), backend.create("a/b", b"two")) == (True, False)
    assert backend.read("a/b", limit=3) == b"one"
    with pytest.raises(DigestError, match="a/b: expected at most 2 bytes, got 3"):
        backend.read("a/b", limit=2)
    backend.replace("a/b", b"three")
    backend.create("a/c", b"")
    assert [(one.path, one.size) for one in backend.objects("a")] == [("a/b", 5), ("a/c", 0)]
    assert [one.path for one in backend.objects("a", after="a/b")] == ["a/c"]
    assert backend.children("a") == ["b", "c"]
    backend.delete("a/b")
    backend.delete("a/b")
    assert [one.path for one in backend.objects("a")] == ["a/c"]


def test_publish_promote_roll_back_verify(store: Store, adapters: list[Path], s3: str) -> None:
    digests = [store.publish(adapter, signer=KEY) for adapter in adapters]
    assert [store.publish(adapter) for adapter in adapters] == digests
    for digest in digests:
        promote(store, digest, signer=KEY)
    assert rollback(store, signer=KEY).release == digests[1]
    assert [entry.generation for entry in store.history("production")] == [1, 2, 3, 4]
    assert store.channel_after("production", 3) == store.channel("production")
    assert store.channel_after("production", 4) is None
    assert store.channels() == ["production"]
    assert store.resolve(digests[0][:8]) == digests[0]
    assert Store.open(store.url, trusted_keys=[KEY.public]).verify() == []
    with pytest.raises(Unsigned):
        Store.open(store.url, trusted_keys=[generate_key().public]).load_release(digests[0])
    bucket = store.url.split("/")[2]
    assert httpx.get(f"{s3}/{bucket}/neighbour", headers=SIGNED).content == b"precious"


def test_damage_is_found_and_mended(store: Store, adapters: list[Path]) -> None:
    digest = store.publish(adapters[0])
    backend = Backend.open(store.url)
    path = f"releases/{digest}/adapter_model.safetensors"
    whole = backend.read(path, limit=10**6)
    assert whole is not None
    backend.replace(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DigestError):
        promote(store, digest)
    assert [problem.where for problem in store.verify()] == [f"releases/{digest}"]
    store.publish(adapters[0])
    assert store.verify() == []


def test_the_loser_of_a_race_learns_who_was_first(url: str, adapters: list[Path]) -> None:
    """The other writer moves between this one's look at the channel and its put: only the condition can tell."""
    store = Store.open(url)
    mine, theirs = store.publish(adapters[0]), store.publish(adapters[1])

    class SlowBackend(Backend):
        def create(self, path: str, data: bytes) -> bool:
            if path.startswith("channels/"):
                store.promote(theirs, "production", actor="somebody else")
            return super().create(path, data)

    slow = Store(SlowBackend.open(url))
    with pytest.raises(ChannelConflict, match="somebody else made generation 1 first"):
        slow.promote(mine, "production", actor="me", signer=KEY)
    assert [entry.release for entry in store.history("production")] == [theirs]
    signed = {one.path.split("/")[1] for one in Backend.open(url).objects("signatures")}
    logged = {hashlib.sha256(data).hexdigest() for _, data in store.audit_records()}
    assert signed < logged, "the signature of the loser's entry must not wait for a thief to use it"


def test_concurrent_publishers_of_one_release_all_succeed(url: str, adapters: list[Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: Store.open(url).publish(adapters[0]), range(8)))
    assert len(found) == 1
    assert Store.open(url).verify() == []


def test_garbage(store: Store, adapters: list[Path]) -> None:
    kept, lost = (store.publish(adapter, signer=KEY) for adapter in adapters[:2])
    promote(store, kept, signer=KEY)
    assert store.garbage(min_age=timedelta(days=1)) == []
    assert len(store.collect_garbage(min_age=timedelta(0))) == 4
    assert [info.digest for info in store.releases()] == [kept]
    assert lost not in str(Backend.open(store.url).objects(""))
    assert store.verify() == []


def test_a_server_starts_on_it_and_keeps_what_it_needs(store: Store, adapters: list[Path], tmp_path: Path) -> None:
    entry = promote(store, store.publish(adapters[0], signer=KEY), signer=KEY)
    config = ServingConfig(store=store.url, state_dir=str(tmp_path), trusted_keys=(KEY.public,))
    start = find_starting_point(config, None)
    assert start is not None
    assert (start.entry, start.from_store) == (entry, True)
    LastApplied(config.state_path, config.trusted_keys).remember(entry, config.open_store())
    Backend.open(store.url).delete("channels/production/00000000000000000001.json")
    again = find_starting_point(config, None)
    assert again is not None
    assert (again.entry, again.from_store) == (entry, False)
    with pytest.raises(DowngradeRefused, match="no longer holds generation 1"):
        store.channel_after("production", 1)


def test_a_bucket_that_is_not_there(s3: str, adapters: list[Path]) -> None:
    store = Store.open("s3://no-such-bucket/store")
    for call in (store.releases, lambda: store.channel("production"), lambda: store.publish(adapters[0])):
        with pytest.raises(
            StoreUnavailable, match=r"store 's3://no-such-bucket/store': .*check that it is reachable"
        ) as e:
            call()
        assert "\n" not in str(e.value)


def test_a_server_that_is_gone_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_s3(tmp_path / "log") as url:
        for name, value in environment_for(url).items():
            monkeypatch.setenv(name, value)
        make_bucket(url, "bucket")
        store = Store.open("s3://bucket/store")
        assert store.channels() == []
    with pytest.raises(StoreUnavailable, match=r"store 's3://bucket/store': "):
        store.channel("production")
