from pathlib import Path

import pytest
from format.tiny import write_adapter

from unlearn_serve.format.keys import SigningKey, generate_key
from unlearn_serve.serving.records import AuditLog, SwapRecord, now
from unlearn_serve.store import ChannelEntry, Store


@pytest.fixture(scope="session")
def key() -> SigningKey:
    return generate_key()


@pytest.fixture
def store(tmp_path: Path, key: SigningKey) -> Store:
    """A channel that covered case-17, then case-17 and case-18, and then case-18 only."""
    store = Store.open(str(tmp_path / "store"), create=True)
    for ids in (("case-17",), ("case-17", "case-18"), ("case-18",)):
        write_adapter(tmp_path / "adapter", deletion_ids=ids)
        digest = store.publish(tmp_path / "adapter", actor="trainer", signer=key)
        reason = "case-17 was withdrawn" if ids == ("case-18",) else ""
        store.promote(digest, "production", actor="ann", allow_uncover=bool(reason), reason=reason, signer=key)
    return store


@pytest.fixture
def log(tmp_path: Path, store: Store) -> Path:
    """What a server that followed the channel from generation 1 on wrote."""
    path = tmp_path / "state" / "audit.jsonl"
    log = AuditLog(path)
    for entry in store.history("production"):
        log.append(swapped(store, entry))
    return path


def swapped(store: Store, entry: ChannelEntry) -> SwapRecord:
    return SwapRecord(
        event="start" if entry.generation == 1 else "swap",
        at=now(),
        channel=entry.channel,
        ok=True,
        release=entry.release,
        generation=entry.generation,
        deletion_ids=store.load_manifest(entry.release).deletion_ids,
    )
