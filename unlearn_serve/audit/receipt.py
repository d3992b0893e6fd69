"""A deletion receipt: what became of one deletion request, by the store and by its servers' own logs."""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field

from unlearn_serve.errors import AuditError, FormatError, Unsigned
from unlearn_serve.format.atomic import write_atomically
from unlearn_serve.format.fields import Actor, DeletionId, Line, SetName, Sha256, UtcTime
from unlearn_serve.format.keys import PublicKey, SigningKey
from unlearn_serve.format.manifest import DataRef, Evaluation
from unlearn_serve.format.signature import Signature
from unlearn_serve.format.strict_json import StrictModel

RECEIPT_SCHEMA: Final = "unlearn-serve/receipt/1"
MAX_RECEIPT_BYTES = 4 * 2**20


class CoveringRelease(StrictModel):
    """One release that covers the deletion request."""

    release: Sha256
    trained_at: UtcTime
    objective: Line
    data: dict[SetName, DataRef]
    parents: tuple[Sha256, ...]
    evaluation: Evaluation | None
    published_at: UtcTime | None
    """By the store's log; null where that does not know."""
    published_by: Actor | None
    signed_by: tuple[PublicKey, ...]
    problem: Line | None
    """Why its bytes are not sound now; null where every byte was read and verified for this receipt."""


class Covered(StrictModel):
    """A time through which a channel named releases that cover the request, without a gap."""

    channel: Line
    first_generation: Annotated[int, Field(ge=1)]
    last_generation: Annotated[int, Field(ge=1)]
    since: UtcTime
    until: UtcTime | None
    """Null: at the time of this receipt it still does."""
    ended_because: Line | None


class LiveOnServer(StrictModel):
    """A time through which a server computed tokens under releases that cover the request, by its own log."""

    log: Line
    channel: Line
    releases: tuple[Sha256, ...]
    since: UtcTime
    until: UtcTime | None
    """Null: at the log's last record, `seen_until`, it still did."""
    seen_until: UtcTime


class CheckedLog(StrictModel):
    """A log that this receipt rests on, and where it stood."""

    log: Line
    records: Annotated[int, Field(ge=0)]
    head: Sha256 | None
    faults: tuple[Line, ...]


class Receipt(StrictModel):
    """The content of a receipt's JSON file."""

    schema_: Literal["unlearn-serve/receipt/1"] = Field(default=RECEIPT_SCHEMA, alias="schema")
    deletion_id: DeletionId
    issued_at: UtcTime
    issued_by: Actor
    store: Line
    requested_at: UtcTime | None
    """As the issuer states it: neither the store nor a server knows."""
    releases: tuple[CoveringRelease, ...]
    channels: tuple[Covered, ...]
    servers: tuple[LiveOnServer, ...]
    logs: tuple[CheckedLog, ...]

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str) -> Self:
        """Parse the bytes of a receipt; raises `FormatError`, one line that names `source`."""
        return cls.read(data, source=source, max_bytes=MAX_RECEIPT_BYTES, error=FormatError)


def sign_receipt(receipt: Receipt, path: Path, key: SigningKey) -> None:
    """Write the signature of `receipt`, which lies at `path`, beside it, with the suffix .sig."""
    write_atomically(path.with_suffix(".sig"), Signature.of(receipt.to_bytes(), key).to_bytes())


def read_receipt(path: Path, trusted_keys: list[str]) -> Receipt:
    """The receipt at `path`, if one of `trusted_keys` signed it.

    Raises:
        AuditError: a file cannot be read.
        Unsigned: another key signed it.
        BadSignature, FormatError: it was changed since, or is none.
    """
    try:
        data, signed = path.read_bytes(), path.with_suffix(".sig").read_bytes()
    except OSError as problem:
        raise AuditError(f"{problem.filename}: expected a receipt and its .sig, got: {problem.strerror}") from None
    signature = Signature.from_bytes(signed, source=str(path.with_suffix(".sig")))
    if signature.key not in trusted_keys:
        raise Unsigned(f"{path}: expected a signature by a trusted key, got one by {signature.key[:16]}")
    signature.check(data, source=str(path))
    return Receipt.from_bytes(data, source=str(path))
