"""Everything that is wrong with a store's log, and everything in the store that it does not know."""

from collections.abc import Iterator

from unlearn_serve.errors import FormatError, TrustError
from unlearn_serve.format.chain import Fault, chain_faults
from unlearn_serve.store.audit import AuditRecord, StoreAudit
from unlearn_serve.store.channel_entry import entry_path
from unlearn_serve.store.channels import Channels
from unlearn_serve.store.releases import Releases
from unlearn_serve.store.signatures import Signatures


def audit_faults(audit: StoreAudit, releases: Releases, channels: Channels, signatures: Signatures) -> Iterator[Fault]:
    """See `Store.audit_faults`."""
    records = audit.records()
    yield from chain_faults(records)
    noted: set[tuple[str, str]] = set()
    for where, data in records:
        try:
            record = AuditRecord.from_bytes(data, source=where)
        except FormatError as error:
            yield Fault(where, str(error).removeprefix(f"{where}: "))
            continue
        noted.add((record.event, record.document))
    if signatures.trusted_keys and records:
        where, data = records[-1]
        try:
            signatures.require(data, what="the newest record")
        except TrustError as error:
            yield Fault(where, f"{error}; so nothing vouches for what was written since the last one that is")
    yield from _unnoted(releases, channels, noted)


def _unnoted(releases: Releases, channels: Channels, noted: set[tuple[str, str]]) -> Iterator[Fault]:
    """What is in the store without a record: records were cut off, or somebody went past the log."""
    for info in releases.all():
        if ("publish", info.digest) not in noted:
            yield Fault(f"releases/{info.digest}", "is in the store, but the log has no record of its publication")
    for name in channels.names():
        for generation in range(1, channels.newest(name) + 1):
            where = entry_path(name, generation)
            digest = channels.stored_digest(name, generation)
            if digest is None:
                yield Fault(where, "is gone or cannot be read; `verify` says more")
            elif not {("promote", digest), ("rollback", digest)} & noted:
                yield Fault(where, "is in the channel, but the log has no record of this move")
