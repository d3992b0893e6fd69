"""A receipt says what the store and the servers' logs say, no more, and names what is wrong with them."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from unlearn_serve.audit import Receipt, ServerLog, issue_receipt, read_receipt, receipt_page, sign_receipt
from unlearn_serve.errors import AuditError, BadSignature, FormatError, Unsigned
from unlearn_serve.format.keys import SigningKey, generate_key
from unlearn_serve.store import Store


def issue(store: Store, deletion_id: str, *logs: Path) -> Receipt:
    return issue_receipt(store, deletion_id, [ServerLog.read(log) for log in logs], issued_by="ann")


def test_it_tells_the_whole_story(store: Store, log: Path, key: SigningKey) -> None:
    first, both, other = store.history("production")
    receipt = issue(store, "case-17", log)

    assert {one.release for one in receipt.releases} == {first.release, both.release}
    for one in receipt.releases:
        assert (one.published_by, one.signed_by, one.problem) == ("trainer", (key.public,), None)
        assert one.published_at is not None
        assert one.evaluation is not None
        assert (one.objective, one.data["forget"].rows) == ("npo", 6)
    (channel,) = receipt.channels
    assert (channel.first_generation, channel.last_generation) == (1, 2)
    assert (channel.since, channel.until, channel.ended_because) == (first.at, other.at, "case-17 was withdrawn")
    (server,) = receipt.servers
    assert server.releases == (first.release, both.release)
    assert server.until is not None
    assert [(one.records, one.faults) for one in receipt.logs] == [(6, ()), (3, ())]

    still = issue(store, "case-18", log)
    assert [(one.first_generation, one.until) for one in still.channels] == [(2, None)]
    assert [(one.releases, one.until) for one in still.servers] == [((both.release, other.release), None)]


def test_covered_again_is_another_period(store: Store, log: Path) -> None:
    store.promote(store.history("production")[1].release, "production", actor="ann")
    assert [
        (one.first_generation, one.last_generation, one.until is None) for one in issue(store, "case-17").channels
    ] == [
        (1, 2, False),
        (4, 4, True),
    ]


def test_without_a_log_no_server_is_claimed(store: Store) -> None:
    receipt = issue(store, "case-17")
    assert receipt.servers == ()
    assert "no server's log that was given shows" in receipt_page(receipt, signed_by=None)


@pytest.mark.parametrize("deletion_id", ["case-19", "", "../x", "case-1"])
def test_no_release_no_receipt(store: Store, deletion_id: str) -> None:
    with pytest.raises(AuditError, match="holds no release that covers"):
        issue(store, deletion_id)


def test_faults_are_in_the_receipt(store: Store, log: Path) -> None:
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], lines[2]]) + "\n")
    digest = store.history("production")[0].release
    (Path(store.url) / "releases" / digest / "adapter_config.json").write_bytes(b"{}")
    shutil.rmtree(Path(store.url) / "audit")
    receipt = issue(store, "case-17", log)
    of_store, of_server = receipt.logs
    assert len(of_store.faults) == 6
    assert "expected record 2, got 3" in of_server.faults[0]
    assert [one.published_at for one in receipt.releases] == [None, None]
    assert any("adapter_config.json: expected" in (one.problem or "") for one in receipt.releases)
    page = receipt_page(receipt, signed_by=None)
    assert page.count('class="bad"') > 6


def test_a_server_of_another_store_is_a_fault(store: Store, log: Path) -> None:
    """Its log speaks of releases that this channel never named at those generations."""
    log.write_text(log.read_text().replace(store.history("production")[2].release, "0" * 64))
    (fault,) = issue(store, "case-17", log).logs[1].faults
    assert f"says that generation 3 of 'production' is {'0' * 64}, the store says" in fault


def test_signed_it_cannot_be_changed(store: Store, log: Path, tmp_path: Path, key: SigningKey) -> None:
    receipt = issue(store, "case-17", log)
    path = tmp_path / "r.json"
    path.write_bytes(receipt.to_bytes())
    with pytest.raises(AuditError, match=r"r.sig: expected a receipt and its .sig"):
        read_receipt(path, [key.public])
    sign_receipt(receipt, path, key)
    assert read_receipt(path, [key.public]) == receipt
    with pytest.raises(Unsigned, match="expected a signature by a trusted key"):
        read_receipt(path, [generate_key().public])
    path.write_bytes(path.read_bytes().replace(b'"issued_by":"ann"', b'"issued_by":"eve"'))
    with pytest.raises(BadSignature):
        read_receipt(path, [key.public])
    path.with_suffix(".sig").write_bytes(b"{}")
    with pytest.raises(FormatError):
        read_receipt(path, [key.public])


def test_the_page_shows_what_is_said_and_runs_nothing(store: Store, log: Path, key: SigningKey) -> None:
    digest = store.history("production")[0].release
    store.promote(digest, "production", actor="<script>alert(1)</script>", allow_uncover=True, reason="<b>why</b>")
    store.promote(store.history("production")[2].release, "production", actor="x", allow_uncover=True, reason="<img>")
    receipt = issue_receipt(
        store, "case-17", [ServerLog.read(log)], issued_by="ann", requested_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    )
    page = receipt_page(receipt, signed_by=key.public)
    for text in ("case-17", digest, key.public, "2026-01-02 03:04:05 UTC", "case-17 was withdrawn", "accuracy 1.000"):
        assert text in page
    assert "<img>" not in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"expected a server's audit.jsonl, got: No such file"):
        ServerLog.read(tmp_path / "audit.jsonl")
