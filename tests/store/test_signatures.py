"""S1 to S7: with trusted keys, only what one of them signed is loaded or goes live; digests never change."""

import shutil
from pathlib import Path

import pytest
from obstore.store import LocalStore
from store.faults import DyingBackend, Killed
from store.moves import entry_file

from unlearn_serve.errors import BadSignature, DropsDeletions, FormatError, HistoryBroken, ReleaseNotFound, Unsigned
from unlearn_serve.format.keys import SigningKey, generate_key
from unlearn_serve.store import ChannelEntry, Store

OLD, NEW, THIEF = generate_key(), generate_key(), generate_key()


def trusting(store: Store, *keys: SigningKey) -> Store:
    return Store.open(store.url, trusted_keys=[key.public for key in keys])


def signature_file(store: Store, document: str, key: SigningKey) -> Path:
    return Path(store.url) / "signatures" / document / f"{key.public}.json"


@pytest.fixture
def signed(store: Store, adapters: list[Path]) -> list[str]:
    """Digests of two releases in `store` that OLD signed; the second is live on `production`."""
    digests = [store.publish(adapter, signer=OLD) for adapter in adapters[:2]]
    for digest in digests:
        store.promote(digest, "production", actor="ann", signer=OLD)
    return digests


def test_a_signature_changes_no_digest(store: Store, adapters: list[Path], signed: list[str]) -> None:
    """S1: the same adapter, unsigned, is the same release; and publishing it unsigned takes no signature away."""
    assert [store.publish(adapter) for adapter in adapters[:2]] == signed
    assert trusting(store, OLD).load_release(signed[0]).digest == signed[0]
    assert store.verify() == []
    assert trusting(store, OLD).verify() == []


def test_unsigned_releases_are_refused_by_all_readers(store: Store, releases: list[str]) -> None:
    """S3."""
    reader = trusting(store, OLD, NEW)
    message = rf"^release {releases[0]}: expected a signature by a trusted key \({OLD.public[:16]}, {NEW.public[:16]}\)"
    for read in (
        reader.load_manifest,
        reader.load_release,
        lambda digest: reader.promote(digest, "production", actor="ann", signer=OLD),
        lambda digest: reader.sign(digest, NEW),
        lambda digest: Store.open(f"{store.url}-copy", create=True).copy_release(digest, reader),
    ):
        with pytest.raises(Unsigned, match=message) as error:
            read(releases[0])
        assert "\n" not in str(error.value)
    assert store.load_release(releases[0]).digest == releases[0], "without trusted keys nothing is asked"
    assert {info.problem is None for info in reader.releases()} == {False}
    assert [problem.where for problem in reader.verify()] == [f"releases/{digest}" for digest in sorted(releases)]


def test_anothers_signature_is_none(store: Store, adapters: list[Path]) -> None:
    """S3: a thief of the store's credential signs with a key of his own, in his own name and in that of OLD."""
    digest = store.publish(adapters[0], signer=THIEF)
    with pytest.raises(Unsigned):
        trusting(store, OLD).load_release(digest)
    his = signature_file(store, digest, THIEF)
    his.rename(signature_file(store, digest, OLD))
    with pytest.raises(BadSignature, match=rf"release {digest}: .*expected the signature of this place"):
        trusting(store, OLD).load_release(digest)
    where = signature_file(store, digest, OLD)
    where.write_bytes(where.read_bytes().replace(THIEF.public.encode(), OLD.public.encode()))
    with pytest.raises(BadSignature, match="find out who wrote this"):
        trusting(store, OLD).load_release(digest)
    assert [problem.where for problem in store.verify()] == [f"signatures/{digest}/{OLD.public}.json"]


def test_a_signature_of_another_document_is_refused(store: Store, signed: list[str]) -> None:
    """S2: a signature moved to another release, and an entry's to a release."""
    for source in (signed[0], store.channel("production").digest):
        shutil.copy(signature_file(store, source, OLD), signature_file(store, signed[1], OLD))
        with pytest.raises(BadSignature, match="expected the signature of this place"):
            trusting(store, OLD).load_release(signed[1])


@pytest.mark.parametrize("data", [b"", b"{}", b"x" * 9999, b"[" * 99])
def test_a_malformed_signature_is_refused_and_signing_again_mends_it(
    store: Store, signed: list[str], data: bytes
) -> None:
    """S4."""
    signature_file(store, signed[0], OLD).write_bytes(data)
    with pytest.raises(BadSignature, match=f"release {signed[0]}: signatures/"):
        trusting(store, OLD).load_release(signed[0])
    store.sign(signed[0], OLD)
    assert trusting(store, OLD).load_release(signed[0]).digest == signed[0]


def test_one_good_signature_is_enough(store: Store, signed: list[str]) -> None:
    """S3: a retired key's damaged file must not take a release away."""
    store.sign(signed[0], NEW)
    signature_file(store, signed[0], OLD).write_bytes(b"damaged")
    assert trusting(store, OLD, NEW).load_release(signed[0]).digest == signed[0]
    with pytest.raises(BadSignature):
        trusting(store, OLD).load_release(signed[0])


def test_keys_are_rotated_without_a_gap(store: Store, signed: list[str]) -> None:
    """S5: sign anew what is live, under the eyes of the old key; then servers may trust the new one only."""
    entry = trusting(store, OLD).sign_channel("production", NEW)
    for keys in ((OLD,), (OLD, NEW), (NEW,)):
        assert trusting(store, *keys).admit(entry).digest == signed[1]
    with pytest.raises(Unsigned):
        trusting(store, NEW).load_release(signed[0])
    assert trusting(store, NEW).promote(signed[1], "production", actor="ann", signer=NEW).generation == 3


def test_sign_verifies_what_it_signs(store: Store, signed: list[str]) -> None:
    """S5: a damaged release gets no signature, and the thief's entry none either."""
    promoted = store.promote(signed[0], "production", actor="thief")
    with pytest.raises(Unsigned, match="channel 'production' generation 3: expected a signature"):
        trusting(store, OLD).sign_channel("production", NEW)
    with pytest.raises(ReleaseNotFound):
        store.sign("0" * 64, NEW)
    assert not signature_file(store, promoted.digest, NEW).exists()


def test_an_unsigned_move_is_not_admitted(store: Store, signed: list[str]) -> None:
    """S6: the stolen credential puts a channel back to an old release, soundly signed."""
    reader = trusting(store, OLD)
    for signer in (None, THIEF):
        entry = store.promote(signed[0], "production", actor="thief", signer=signer)
        with pytest.raises(Unsigned, match=f"channel 'production' generation {entry.generation}: expected a signature"):
            reader.admit(entry)


def test_an_old_signed_entry_does_not_pass_for_a_new_one(store: Store, signed: list[str]) -> None:
    """S6: replayed under a later generation it is not the entry of its place; renumbered, it is not signed."""
    old = store.history("production")[0]
    entry_file(store, 3).write_bytes(old.to_bytes())
    with pytest.raises(FormatError, match="expected the entry of this place, got 'production' 1"):
        trusting(store, OLD).channel("production")
    renumbered = old.model_copy(update={"generation": 3})
    with pytest.raises(Unsigned):
        trusting(store, OLD).admit(renumbered)
    elsewhere = old.model_copy(update={"channel": "staging"})
    with pytest.raises(Unsigned):
        trusting(store, OLD).admit(elsewhere)


def test_moves_need_a_trusted_signer(store: Store, signed: list[str]) -> None:
    """S6: so no entry is written that servers would refuse."""
    writer = trusting(store, OLD)
    for signer, got in ((None, "got none"), (THIEF, f"got {THIEF.public[:16]}")):
        with pytest.raises(Unsigned, match=got):
            writer.promote(signed[0], "production", actor="ann", signer=signer)
        with pytest.raises(Unsigned, match=r"unlearn-serve rollback --sign KEY"):
            writer.rollback("production", actor="ann", signer=signer)
    assert store.channel("production").generation == 2
    assert trusting(store, OLD).rollback("production", actor="ann", signer=OLD).release == signed[0]


def test_a_rollback_is_not_led_astray_by_unsigned_entries(store: Store, signed: list[str]) -> None:
    """S6: an unsigned newest entry says what a rollback would restore; it is not believed, and can be moved past."""
    store.promote(signed[0], "production", actor="thief")
    writer = trusting(store, OLD)
    with pytest.raises(Unsigned, match="generation 3"):
        writer.rollback("production", actor="ann", signer=OLD)
    with pytest.raises(DropsDeletions, match=r"what generation 3 covers is unknown"):
        writer.promote(signed[1], "production", actor="ann", signer=OLD)
    entry = writer.promote(
        signed[1], "production", actor="ann", signer=OLD, allow_uncover=True, reason="past the thief's entry"
    )
    assert (entry.generation, entry.uncovers) == (4, ())
    assert writer.admit(entry).digest == signed[1]


@pytest.mark.parametrize("at", range(6))
def test_nothing_is_ever_visible_unsigned(tmp_path: Path, adapters: list[Path], at: int) -> None:
    """S7: killed before any of its puts, a signing publisher leaves nothing visible."""
    store = Store.open(str(tmp_path / "store"), create=True)
    with pytest.raises(Killed):
        Store(DyingBackend(LocalStore(prefix=tmp_path / "store"), at=at)).publish(adapters[0], signer=OLD)
    assert store.releases() == []
    assert trusting(store, OLD).verify() == []
    digest = store.publish(adapters[0], signer=OLD)
    assert trusting(store, OLD).load_release(digest).digest == digest
    for put in range(4):
        with pytest.raises(Killed):
            Store(DyingBackend(LocalStore(prefix=tmp_path / "store"), at=put)).promote(
                digest, "production", actor="ann", signer=OLD
            )
        assert store.channels() == []


def test_copies_carry_the_trusted_signatures(store: Store, signed: list[str], tmp_path: Path) -> None:
    """S3: so that what a server keeps beside it can be checked when the store is away."""
    store.sign(signed[1], THIEF)
    entry = store.channel("production")
    copy = Store.open(str(tmp_path / "copy"), create=True, trusted_keys=[OLD.public])
    copy.copy_release(signed[1], trusting(store, OLD))
    copy.copy_signatures(entry, trusting(store, OLD))
    assert copy.admit(entry).digest == signed[1]
    assert not signature_file(copy, signed[1], THIEF).exists()


def test_verify_finds_what_does_not_belong(store: Store, signed: list[str]) -> None:
    stray = Path(store.url) / "signatures" / "readme.txt"
    stray.write_text("")
    signature_file(store, store.channel("production").digest, THIEF).write_bytes(b"{}")
    assert sorted(problem.where for problem in store.verify()) == [
        f"signatures/{store.channel('production').digest}/{THIEF.public}.json",
        "signatures/readme.txt",
    ]


def test_a_changed_past_shows(store: Store, signed: list[str]) -> None:
    """C11: each entry names the one before it, so one signature vouches for the whole history."""
    first = store.history("production")[0]
    assert store.history("production")[1].previous == first.digest
    assert first.previous is None
    changed: ChannelEntry = first.model_copy(update={"actor": "somebody else"})
    entry_file(store, 1).write_bytes(changed.to_bytes())
    (problem,) = store.verify()
    assert problem.where.endswith(f"{2:020d}.json")
    assert f"follows entry {first.digest}, which is not here" in problem.message


def test_an_entry_signed_for_another_store_is_refused(
    store: Store, signed: list[str], adapters: list[Path], tmp_path: Path
) -> None:
    """C13: the same key, channel and generation in a store for trials; its entry is replayed with all that it needs."""
    trial = Store.open(str(tmp_path / "trial"), create=True)
    for adapter in (adapters[2], adapters[1], adapters[0], adapters[2]):
        trial.promote(trial.publish(adapter, signer=OLD), "production", actor="ann", signer=OLD)
    live = store.channel("production")
    reader = trusting(store, OLD)
    shutil.copytree(trial.url, store.url, dirs_exist_ok=True)
    replayed = reader.channel("production")
    assert replayed.generation == 4
    with pytest.raises(
        HistoryBroken, match=r"generation 4: expected an entry that descends from generation 2 as it was"
    ):
        reader.admit(replayed, applied=live, covered=("case-17",))
    assert reader.admit(replayed), "a server that has applied nothing cannot know: use a key for each store"


def test_past_what_a_thief_wrote_the_history_goes_on(store: Store, signed: list[str]) -> None:
    """C11 and C13: entries that no trusted key signed, or that cannot be read, are not part of it."""
    live = store.channel("production")
    store.promote(signed[0], "production", actor="thief")
    entry_file(store, 4).write_bytes(b"junk")
    writer = trusting(store, OLD)
    five = writer.promote(signed[0], "production", actor="ann", signer=OLD, allow_uncover=True, reason="past them")
    six = writer.promote(signed[1], "production", actor="ann", signer=OLD)
    assert (five.previous, six.previous) == (live.digest, five.digest)
    assert writer.admit(six, applied=live, covered=("case-17",)).digest == signed[1]
    rotated = writer.sign_channel("production", NEW)
    assert trusting(store, NEW).admit(rotated, applied=live).digest == signed[1], (
        "five needs no signature by the new key"
    )
