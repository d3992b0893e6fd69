"""The store's own log, audit/<number, 20 digits>.json: every publish, promote, rollback, signature and removal.

A record is written before the act, and names by its SHA-256 the document that the act brings. So whatever is in the
store has a record, however its writer died; a record whose document is not there is of an act that did not happen.
"""

import re
from datetime import UTC, datetime
from typing import Any, Final, Literal, Self

from pydantic import Field

from unlearn_serve.errors import FormatError, StoreUnavailable
from unlearn_serve.format.chain import MAX_RECORD_BYTES, Link
from unlearn_serve.format.fields import Actor, DeletionId, Line, Sha256, UtcTime
from unlearn_serve.format.keys import PublicKey, SigningKey
from unlearn_serve.format.strict_json import StrictModel, one_line_errors
from unlearn_serve.store.backend import Backend
from unlearn_serve.store.channel_entry import ChannelName, Generation
from unlearn_serve.store.signatures import Signatures

AUDIT_SCHEMA: Final = "unlearn-serve/audit/1"
_PATH = re.compile(r"audit/([0-9]{20})\.json")
_ATTEMPTS = 50


class AuditRecord(StrictModel):
    """The content of audit/<seq>.json."""

    schema_: Literal["unlearn-serve/audit/1"] = Field(default=AUDIT_SCHEMA, alias="schema")
    seq: Generation
    previous: Sha256 | None
    """SHA-256 of the record before; null in the first."""
    at: UtcTime
    actor: Actor
    event: Literal["publish", "promote", "rollback", "sign", "remove"]
    document: Sha256
    """What the act brings, signs or removes: a manifest (so a release), or a channel's entry."""
    release: Sha256 | None = None
    channel: ChannelName | None = None
    generation: Generation | None = None
    deletion_ids: tuple[DeletionId, ...] = ()
    uncovers: tuple[DeletionId, ...] = ()
    reason: Line = ""
    key: PublicKey | None = None
    """Who signs the document."""

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str) -> Self:
        """Parse the bytes of a record; raises `FormatError`, one line that names `source`."""
        return cls.read(data, source=source, max_bytes=MAX_RECORD_BYTES, error=FormatError)


class StoreAudit:
    """The part of a store under audit/; append-only."""

    def __init__(self, backend: Backend, signatures: Signatures) -> None:
        """Use the objects of `backend`."""
        self._backend = backend
        self._signatures = signatures

    def append(self, *, signer: SigningKey | None = None, **fields: Any) -> AuditRecord:
        """Add a record, signed by `signer` if given; of writers at the same time, each gets a place.

        Raises:
            FormatError: a field is not valid.
            StoreUnavailable: the record could not be written; do not act.
        """
        for _ in range(_ATTEMPTS):
            last = max(self._numbers(), default=0)
            data = self._read(last) if last else None
            at = Link(last).after(data)._replace(seq=last) if data is not None else Link(last)
            with one_line_errors("audit", FormatError):
                record = AuditRecord(
                    seq=at.seq + 1,
                    previous=at.digest,
                    at=datetime.now(UTC),
                    key=signer.public if signer else None,
                    **fields,
                )
            if signer is not None:
                self._signatures.add(record.to_bytes(), signer)
            if self._backend.create(audit_path(record.seq), record.to_bytes()):
                return record
            if signer is not None:
                self._signatures.remove(record.to_bytes(), signer)
        raise StoreUnavailable(f"store {self._backend.name!r}: its audit log took no record in {_ATTEMPTS} attempts")

    def records(self) -> list[tuple[str, bytes]]:
        """Path and bytes of each record, in order; sound or not."""
        found = ((audit_path(number), self._read(number)) for number in self._numbers())
        return [(path, data) for path, data in found if data is not None]

    def _numbers(self) -> list[int]:
        matches = (_PATH.fullmatch(one.path) for one in self._backend.objects("audit"))
        return sorted(int(match[1]) for match in matches if match)

    def _read(self, number: int) -> bytes | None:
        return self._backend.read(audit_path(number), limit=MAX_RECORD_BYTES)


def audit_path(seq: int) -> str:
    """Where a record lies; twenty digits, so that listings sort."""
    return f"audit/{seq:020d}.json"


def is_audit_path(path: str) -> bool:
    """Whether a record may lie at `path`."""
    return _PATH.fullmatch(path) is not None
