"""A real server with a trusted key, its store on S3: what a thief of its credential writes, and what then."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.adapters import write_random_adapter
from support.command_line import Run
from support.s3 import environment_for, make_bucket, running_s3
from support.server import ADMIN_KEY, GENEROUS_SECONDS, Server, running, serve_command, wait_until
from support.tiny_models import write_tiny_model

from unlearn_serve.audit import ServerLog, issue_receipt
from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.format.keys import SigningKey, read_signing_key, write_key_pair
from unlearn_serve.serving.records import SwapRecord
from unlearn_serve.store import Backend, ChannelEntry, Store
from unlearn_serve.store.channel_entry import entry_path

pytestmark = [pytest.mark.engine, pytest.mark.model]

CHANNEL = "production"
HEADERS = {"X-Unlearn-Admin-Key": ADMIN_KEY}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trusted")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return write_tiny_model(folder / "tiny", vocab_size=49152, tokenizer=ensure_checkpoint())


@pytest.fixture(scope="module")
def key(folder: Path) -> SigningKey:
    write_key_pair(folder / "ops")
    return read_signing_key(folder / "ops")


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    with running_s3(folder / "s3.log") as url, pytest.MonkeyPatch.context() as environment:
        for name, value in environment_for(url).items():
            environment.setenv(name, value)  # servers inherit it
        make_bucket(url, "bucket")
        yield Store.open("s3://bucket/store")


@pytest.fixture(scope="module")
def publish(folder: Path, base: Path, store: Store) -> Callable[..., str]:
    def make(seed: int, signer: SigningKey | None, **options: Any) -> str:
        return store.publish(write_random_adapter(base, folder / f"{seed}", seed=seed, **options), signer=signer)

    return make


@pytest.fixture(scope="module")
def command(folder: Path, base: Path, store: Store) -> list[str]:
    return serve_command(base, store.url, folder / "state", "--trusted-key", str(folder / "ops.pub"))


@pytest.fixture(scope="module")
def server(
    folder: Path, store: Store, key: SigningKey, publish: Callable[..., str], command: list[str]
) -> Iterator[Server]:
    store.promote(publish(0, key), CHANNEL, actor="ops", signer=key)
    with running(command, log=folder / "server.log", headers=HEADERS, UNLEARN_ADMIN_KEY=ADMIN_KEY) as started:
        started.wait_ready()
        yield started


def write_entry(store: Store, release: str, signer: SigningKey | None, **changes: Any) -> ChannelEntry:
    """Move the channel as whoever can write to the store can: past all checks of a promote."""
    live = store.channel(CHANNEL)
    entry = live.model_copy(
        update={"generation": live.generation + 1, "release": release, "previous": live.digest, "actor": "thief"}
        | changes
    )
    if signer is not None:
        store._signatures.add(entry.to_bytes(), signer)
    assert Backend.open(store.url).create(entry_path(CHANNEL, entry.generation), entry.to_bytes())
    return entry


def test_what_no_trusted_key_signed_is_refused_and_what_one_signed_goes_live(
    server: Server, folder: Path, store: Store, key: SigningKey, publish: Callable[..., str]
) -> None:
    unsigned, signed, other_id = publish(1, None), publish(2, key), publish(3, key, deletion_id="case-2")
    before = server.status()["live"]
    attempts = [
        (write_entry, unsigned, None, "Unsigned: channel 'production' generation"),
        (write_entry, unsigned, key, f"Unsigned: release {unsigned}"),
        (write_entry, signed, None, "Unsigned: channel 'production' generation"),
        (write_entry, other_id, key, "DropsDeletions: channel 'production' generation"),
    ]
    refusals = []
    for write, release, signer, reason in attempts:
        entry = write(store, release, signer)

        def refused(generation: int = entry.generation) -> str | None:
            now = server.status()["refused"]
            return now if now and now.startswith(f"generation {generation}: ") else None

        assert reason in wait_until(refused, reason)
        assert server.status()["live"] == before
        refusals.append((entry.generation, release))

    with server.client() as client:
        answer = client.post("/v1/unlearning/rollback", json={"to_generation": 1})
    assert answer.status_code == 400
    assert "expected a signing key that is trusted" in answer.text

    entry = store.promote(signed, CHANNEL, actor="ops", signer=key, allow_uncover=True, reason="past the thief")
    after = server.wait_live(entry.generation)
    assert (after["live"]["release"], after["refused"], after["enforced"]) == (signed, None, True)
    records = [record for record in audit(folder) if record.event == "refusal"]
    assert [(record.generation, record.release) for record in records] == refusals


def test_what_is_given_back_on_purpose_is_in_the_audit_log(
    server: Server, folder: Path, store: Store, key: SigningKey, publish: Callable[..., str]
) -> None:
    release = publish(4, key, deletion_id="case-3")
    entry = store.promote(release, CHANNEL, actor="ops", signer=key, allow_uncover=True, reason="case-1 was withdrawn")
    server.wait_live(entry.generation)

    record = audit(folder)[-1]
    assert (record.event, record.uncovers, record.reason) == ("swap", ("case-1",), "case-1 was withdrawn")


def test_its_log_and_the_stores_agree(server: Server, folder: Path, store: Store, key: SigningKey) -> None:
    (path,) = (folder / "state").glob("*/audit.jsonl")
    log = ServerLog.read(path)
    assert list(log.faults(store)) == []
    assert {fault.message for fault in store.audit_faults()} == {
        "is in the channel, but the log has no record of this move"
    }, "of the thief's entries, and of nothing else"

    receipt = issue_receipt(store, "case-3", [log], issued_by="test")
    (live,) = receipt.servers
    assert (live.releases, live.until) == ((server.status()["live"]["release"],), None)
    assert receipt.releases[0].signed_by == (key.public,)


def test_two_servers_converge_and_one_that_is_gone_is_named(
    server: Server,
    folder: Path,
    base: Path,
    store: Store,
    key: SigningKey,
    publish: Callable[..., str],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNLEARN_ADMIN_KEY", ADMIN_KEY)
    command = serve_command(base, store.url, folder / "state-of-second", "--trusted-key", str(folder / "ops.pub"))
    with running(command, log=folder / "second.log", headers=HEADERS, UNLEARN_ADMIN_KEY=ADMIN_KEY) as second:
        second.wait_ready()
        servers = ("--url", server.url, "--url", second.url)
        signed = ("--store", store.url, "--sign", folder / "ops", "--wait", *servers)

        done = run("promote", publish(5, key, deletion_id="case-3"), *signed, "--timeout", str(GENEROUS_SECONDS))

        assert done.code == 0, done.stderr
        live = [one.status()["live"] for one in (server, second)]
        assert live[0]["generation"] == live[1]["generation"] == store.channel(CHANNEL).generation
        assert live[0]["release"] == live[1]["release"]
        assert run("status", "--store", store.url, *servers).code == 0

    gone = run("promote", publish(6, key, deletion_id="case-3"), *signed, "--timeout", "5")

    assert gone.code == 3
    assert f"{second.url.removeprefix('http://')}: unreachable: no answer" in gone.stderr
    server.wait_live(store.channel(CHANNEL).generation)


def test_set_back_it_serves_on_and_starts_on_what_it_kept(
    server: Server, folder: Path, store: Store, command: list[str]
) -> None:
    """The thief deletes all but the first entry, which is soundly signed: an old release must not come back."""
    live = server.status()["live"]
    for generation in range(2, live["generation"] + 1):
        Backend.open(store.url).delete(entry_path(CHANNEL, generation))

    error = wait_until(lambda: server.status()["store_error"], "the loss is noticed")
    assert f"no longer holds generation {live['generation']}" in error
    assert server.status()["live"] == live
    server.stop()

    # And off the public port: one start shows both.
    socket, keys = folder / "admin.sock", folder / "admin-keys"
    keys.write_text(ADMIN_KEY)
    private = [*command, "--admin-listen", f"unix:{socket}"]
    with running(private, log=folder / "again.log", headers=HEADERS, UNLEARN_ADMIN_KEY_FILE=str(keys)) as again:
        again.wait_ready()
        with again.client() as public:
            assert public.get("/v1/unlearning/status").status_code == 404
            assert public.post("/scale_elastic_ep", json={}).status_code == 403
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://admin") as admin:
            assert admin.get("/v1/unlearning/status").status_code == 401
            status = admin.get("/v1/unlearning/status", headers=HEADERS).raise_for_status().json()
        assert status["live"]["fingerprint"] == live["fingerprint"]


def audit(folder: Path) -> list[SwapRecord]:
    (path,) = (folder / "state").glob("*/audit.jsonl")
    return [SwapRecord.model_validate_json(line) for line in path.read_text().splitlines()]
