"""Logs whose records each name the one before: an edit, a removal, an insertion or another order shows.

What a chain alone cannot show is that its last records were cut off or changed: that takes something outside it that
knows its head, like a signature, a receipt, or the channel that the log speaks of.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from unlearn_serve.errors import FormatError
from unlearn_serve.format.strict_json import parse_json

MAX_RECORD_BYTES = 2**20


class Link(NamedTuple):
    """Where a chain stands: how many records it has, and the SHA-256 of the last one's bytes."""

    seq: int = 0
    digest: str | None = None

    def after(self, record: bytes) -> "Link":
        """Where it stands after one more record, sound or not."""
        return Link(self.seq + 1, hashlib.sha256(record).hexdigest())


class Fault(NamedTuple):
    """One thing that is wrong with a log, and where."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def chain_faults(records: Iterable[tuple[str, bytes]]) -> Iterator[Fault]:
    """Every place where a chain is broken.

    Args:
        records: place and bytes of each record, in order. A record is a JSON object with `seq`, from 1 without a gap,
            and `previous`, the SHA-256 of the record before, null in the first.
    """
    at = Link()
    for where, data in records:
        try:
            found = parse_json(data, source=where, max_bytes=MAX_RECORD_BYTES, error=FormatError)
        except FormatError as error:
            yield Fault(where, f"not a record, or half of one: {str(error).removeprefix(f'{where}: ')}")
        else:
            if (seq := found.get("seq")) != at.seq + 1:
                yield Fault(where, f"expected record {at.seq + 1}, got {seq}: records were removed, added or moved")
            if (previous := found.get("previous")) != at.digest:
                yield Fault(
                    where, f"expected previous {at.digest}, got {previous}: what is before it was changed or moved"
                )
        at = at.after(data)


def lines_of(data: bytes) -> list[bytes]:
    """The records of a log in one file, one a line; the last may be half a record."""
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def head_of(records: Iterable[bytes]) -> Link:
    """Where a chain of these records stands."""
    at = Link()
    for data in records:
        at = at.after(data)
    return at
