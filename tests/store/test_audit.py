"""The store's log: every act is in it, whoever died when, and what is not in it is found."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from format.tiny import edited
from obstore.store import LocalStore
from store.faults import DyingBackend, Killed
from store.moves import entry_file, promote, rollback

from unlearn_serve.format.keys import generate_key
from unlearn_serve.store import AuditRecord, Store

KEY = generate_key()


def record_file(store: Store, seq: int) -> Path:
    return Path(store.url) / "audit" / f"{seq:020d}.json"


def records(store: Store) -> list[AuditRecord]:
    return [AuditRecord.from_bytes(data, source=where) for where, data in store.audit_records()]


def faults(store: Store) -> list[str]:
    found = [str(fault) for fault in store.audit_faults()]
    assert all("\n" not in fault for fault in found)
    return found


@pytest.fixture
def moved(store: Store, adapters: list[Path]) -> Store:
    for adapter in adapters[:2]:
        promote(store, store.publish(adapter, actor="eve", signer=KEY), reason="case", signer=KEY)
    rollback(store, signer=KEY)
    return store


def test_every_act_is_noted_with_who_and_what(moved: Store, adapters: list[Path]) -> None:
    spare = moved.publish(adapters[2])
    moved.sign(spare, KEY, actor="ann")
    moved.collect_garbage(min_age=timedelta(0), actor="gc")
    found = records(moved)
    assert [(one.event, one.actor, one.generation) for one in found] == [
        ("publish", "eve", None),
        ("promote", "ann", 1),
        ("publish", "eve", None),
        ("promote", "ann", 2),
        ("rollback", "bob", 3),
        ("publish", "unnamed", None),
        ("sign", "ann", None),
        ("remove", "gc", None),
    ]
    entries = moved.history("production")
    assert [found[place].document for place in (1, 3, 4)] == [entry.digest for entry in entries]
    assert found[1].reason == "case"
    assert {one.deletion_ids for one in found[:6]} == {("case-17",)}
    assert [one.key for one in found] == [KEY.public] * 5 + [None, KEY.public, None]
    assert faults(moved) == []
    assert moved.verify() == []


def test_publishing_again_is_no_event(moved: Store, adapters: list[Path]) -> None:
    before = len(records(moved))
    moved.publish(adapters[0])
    (Path(moved.url) / "releases" / records(moved)[0].document / "manifest.json").write_bytes(b"damaged")
    moved.publish(adapters[0])
    assert len(records(moved)) == before


@pytest.mark.parametrize("death", ["before", "after"])
def test_nothing_is_in_the_store_without_a_record_whoever_was_killed(
    tmp_path: Path, adapters: list[Path], death: str
) -> None:
    """L1 and L4: killed at each put of a publish and of a promote; then done again."""
    store = Store.open(str(tmp_path), create=True)
    for act in (
        lambda on: on.publish(adapters[0], signer=KEY),
        lambda on: on.promote(store.releases()[0].digest, "production", actor="ann", signer=KEY),
    ):
        for put in range(6):
            dying = Store(DyingBackend(LocalStore(prefix=tmp_path), at=put, death=death))  # type: ignore[arg-type]
            try:
                act(dying)
            except Killed:
                assert faults(store) == []
        act(store)
        assert faults(store) == []
    assert store.channel("production").release == store.releases()[0].digest


def test_writers_at_the_same_time_each_get_a_place(store: Store, adapters: list[Path]) -> None:
    digest = store.publish(adapters[0])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: Store.open(store.url).promote(digest, f"channel-{n}", actor="ann"), range(12)))
    assert len(records(store)) == 13
    assert faults(store) == []


def test_edits_removals_and_another_order_show(moved: Store) -> None:
    """L2."""
    right = {seq: record_file(moved, seq).read_bytes() for seq in range(1, 6)}

    def restore() -> None:
        for seq, data in right.items():
            record_file(moved, seq).write_bytes(data)

    record_file(moved, 2).write_bytes(edited(right[2], lambda record: record.update(actor="somebody else")))
    assert [fault.split(":")[0] for fault in faults(moved)] == [f"audit/{3:020d}.json"]
    restore()
    record_file(moved, 2).write_bytes(right[3])
    record_file(moved, 3).write_bytes(right[2])
    assert f"audit/{2:020d}.json: expected record 2, got 3" in faults(moved)[0]
    restore()
    record_file(moved, 3).unlink()
    assert f"audit/{4:020d}.json: expected record 3, got 4" in faults(moved)[0]
    restore()
    record_file(moved, 4).write_bytes(b"{}")
    assert f"audit/{4:020d}.json" in faults(moved)[0]
    restore()
    assert faults(moved) == []


def test_a_log_that_was_cut_off_does_not_know_what_is_in_the_store(moved: Store) -> None:
    """L4: its chain is sound; only the channel, the releases, or a signature tell."""
    for seq in (5, 4, 3):
        record_file(moved, seq).unlink()
    assert sorted(fault.split(":")[0] for fault in faults(moved)) == [
        f"channels/production/{2:020d}.json",
        f"channels/production/{3:020d}.json",
        f"releases/{moved.history('production')[1].release}",
    ]


def test_going_past_the_log_shows(moved: Store) -> None:
    live = moved.channel("production")
    by_hand = live.model_copy(update={"generation": 4, "previous": live.digest, "actor": "thief"})
    entry_file(moved, 4).write_bytes(by_hand.to_bytes())
    assert faults(moved) == [
        f"channels/production/{4:020d}.json: is in the channel, but the log has no record of this move"
    ]
    entry_file(moved, 4).unlink()
    entry_file(moved, 1).write_bytes(moved.history("production")[0].model_copy(update={"actor": "x"}).to_bytes())
    assert [fault.split(":")[0] for fault in faults(moved)] == [f"channels/production/{1:020d}.json"]


def test_a_whole_log_written_anew_is_not_signed(moved: Store, adapters: list[Path]) -> None:
    """L3: a thief can make a chain of his own; he cannot sign its head."""
    trusting = Store.open(moved.url, trusted_keys=[KEY.public])
    assert trusting.audit_faults() == []
    at = None
    for seq in range(1, 6):
        path = record_file(moved, seq)
        path.write_bytes(edited(path.read_bytes(), lambda record, at=at: record.update(actor="nobody", previous=at)))
        at = hashlib.sha256(path.read_bytes()).hexdigest()
    assert moved.audit_faults() == []
    (fault,) = trusting.audit_faults()
    assert "the newest record: expected a signature by a trusted key" in str(fault)


def test_records_are_read_strictly(moved: Store) -> None:
    path = record_file(moved, 5)
    for change, message in (
        ({"schema": "unlearn-serve/audit/2"}, "schema: expected 'unlearn-serve/audit/1'"),
        ({"event": "forget"}, "event: input should be"),
        ({"colour": "red"}, "colour: unknown key"),
        ({"actor": "a\nb"}, "actor: expected one line"),
    ):
        right = path.read_bytes()
        path.write_bytes(edited(right, lambda record, change=change: record.update(change)))
        assert any(f"audit/{5:020d}.json: {message}" in fault for fault in faults(moved)), change
        path.write_bytes(right)
    path.write_bytes(json.dumps(json.loads(right)).encode())
    assert any("canonical JSON" in fault for fault in faults(moved))
