"""Gathers what a receipt says: from manifests, channels, the store's log and servers' logs."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from unlearn_serve.audit.receipt import CheckedLog, Covered, CoveringRelease, LiveOnServer, Receipt
from unlearn_serve.audit.server_log import LIVE_EVENTS, ServerLog, moment
from unlearn_serve.errors import AuditError, FormatError, StoreError, TrustError
from unlearn_serve.format.chain import Fault, head_of
from unlearn_serve.format.strict_json import one_line_errors, shown
from unlearn_serve.store import AuditRecord, ChannelEntry, Store

_MOST_FAULTS = 20


def issue_receipt(
    store: Store, deletion_id: str, logs: Sequence[ServerLog], *, issued_by: str, requested_at: datetime | None = None
) -> Receipt:
    """The receipt of `deletion_id`: every release that covers it is read to the last byte for it.

    Args:
        store: where releases and channels are.
        deletion_id: of the request.
        logs: of servers that follow its channels.
        issued_by: who issues it; one line.
        requested_at: when the request came, as the issuer states it.

    Raises:
        AuditError: the store holds no release that covers it.
        FormatError: an argument cannot be part of a receipt.
    """
    published = {record.document: record for record in _records(store) if record.event == "publish"}
    covering = [
        _covering(store, info.digest, published)
        for info in store.releases()
        if info.manifest and deletion_id in info.manifest.deletion_ids
    ]
    if not covering:
        raise AuditError(
            f"store {store.url!r} holds no release that covers {shown(deletion_id)}; `unlearn-serve list` shows them"
        )
    digests = {one.release for one in covering}
    with one_line_errors("receipt", FormatError):
        return Receipt(
            deletion_id=deletion_id,
            issued_at=datetime.now(UTC),
            issued_by=issued_by,
            store=store.url,
            requested_at=requested_at,
            releases=tuple(covering),
            channels=tuple(one for name in store.channels() for one in _covered(store.history(name), digests)),
            servers=tuple(one for log in logs for one in _live(log, deletion_id)),
            logs=(_checked_store(store), *(_checked(log, store) for log in logs)),
        )


def _records(store: Store) -> Iterator[AuditRecord]:
    for where, data in store.audit_records():
        try:
            yield AuditRecord.from_bytes(data, source=where)
        except FormatError:
            continue  # among the log's faults


def _covering(store: Store, digest: str, published: dict[str, AuditRecord]) -> CoveringRelease:
    manifest = store.load_manifest(digest)
    problem = None
    try:
        store.load_release(digest)
    except (FormatError, StoreError, TrustError) as error:
        problem = str(error)[:1024]
    record = published.get(digest)
    return CoveringRelease(
        release=digest,
        trained_at=manifest.provenance.created_at,
        objective=str(manifest.provenance.objective.get("name", "unnamed")),
        data=manifest.provenance.data,
        parents=manifest.parents,
        evaluation=manifest.evaluation,
        published_at=record.at if record else None,
        published_by=record.actor if record else None,
        signed_by=store.signers(manifest.to_bytes()),
        problem=problem,
    )


def _covered(history: Sequence[ChannelEntry], digests: set[str]) -> Iterator[Covered]:
    begun: ChannelEntry | None = None
    for before, entry in zip((None, *history), (*history, None), strict=True):
        if begun and before and (entry is None or entry.release not in digests):
            yield Covered(
                channel=begun.channel,
                first_generation=begun.generation,
                last_generation=before.generation,
                since=begun.at,
                until=entry.at if entry else None,
                ended_because=(entry.reason or f"{entry.action} by {entry.actor}") if entry else None,
            )
            begun = None
        elif begun is None and entry is not None and entry.release in digests:
            begun = entry


def _live(log: ServerLog, deletion_id: str) -> Iterator[LiveOnServer]:
    begun: datetime | None = None
    releases: dict[str, None] = {}
    last: dict[str, Any] | None = None

    def period(until: datetime | None) -> LiveOnServer:
        assert begun is not None
        assert last is not None
        return LiveOnServer(
            log=str(log.path),
            channel=str(last["channel"]),
            releases=tuple(releases),
            since=begun,
            until=until,
            seen_until=until or moment(last),
        )

    for record in log.records():
        if record.get("event") in LIVE_EVENTS and record.get("ok") is True:
            if deletion_id in record.get("deletion_ids", ()):
                begun = begun or moment(record)
                releases[str(record["release"])] = None
            elif begun is not None:
                yield period(moment(record))
                begun, releases = None, {}
        last = record
    if begun is not None:
        yield period(None)


def _checked_store(store: Store) -> CheckedLog:
    head = head_of(data for _, data in store.audit_records())
    return CheckedLog(log="the store's", records=head.seq, head=head.digest, faults=_shown(store.audit_faults()))


def _checked(log: ServerLog, store: Store) -> CheckedLog:
    head = log.head
    return CheckedLog(log=str(log.path), records=head.seq, head=head.digest, faults=_shown(log.faults(store)))


def _shown(faults: Iterable[Fault]) -> tuple[str, ...]:
    lines = [str(fault)[:1024] for fault in faults]
    more = len(lines) - _MOST_FAULTS
    return (*lines[:_MOST_FAULTS], *([f"and {more} more"] if more > 0 else []))
