"""A server's audit.jsonl, read by whoever does not trust the server's disk."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from unlearn_serve.errors import AuditError, FormatError, StoreError
from unlearn_serve.format.chain import MAX_RECORD_BYTES, Fault, Link, chain_faults, head_of, lines_of
from unlearn_serve.format.strict_json import parse_json
from unlearn_serve.store import Store

LIVE_EVENTS = ("start", "swap", "relabel")
"""Events after which a release is live."""


@dataclass(frozen=True, kw_only=True)
class ServerLog:
    """The records of one server, as they lie in its file."""

    path: Path
    lines: tuple[bytes, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            AuditError: it cannot be read.
        """
        try:
            return cls(path=path, lines=tuple(lines_of(path.read_bytes())))
        except OSError as problem:
            raise AuditError(f"{path}: expected a server's audit.jsonl, got: {problem.strerror}") from None

    @property
    def head(self) -> Link:
        """How many records there are, and the digest of the last."""
        return head_of(self.lines)

    def records(self) -> list[dict[str, Any]]:
        """The records that can be read, oldest first."""
        found = []
        for where, line in self._placed():
            try:
                found.append(parse_json(line, source=where, max_bytes=MAX_RECORD_BYTES, error=FormatError))
            except FormatError:
                continue
        return found

    def faults(self, store: Store | None = None) -> Iterator[Fault]:
        """All that is wrong with the chain, and, with `store`, between the log and the channel it speaks of."""
        yield from chain_faults(self._placed())
        entries: dict[str, dict[int, str]] = {}
        for number, line in enumerate(self.lines, start=1):
            try:
                record = json.loads(line)
                event, ok, channel = record["event"], record["ok"], str(record["channel"])
                generation, release = record.get("generation"), record.get("release")
            except (ValueError, KeyError, TypeError):
                continue  # the chain's check has named it
            if store is None or not ok or event not in LIVE_EVENTS or generation is None:
                continue
            if channel not in entries:
                entries[channel] = _releases_of(store, channel)
            if (expected := entries[channel].get(generation)) != release:
                yield Fault(
                    f"{self.path}:{number}",
                    f"says that generation {generation} of {channel!r} is {release}, the store says {expected}",
                )

    def _placed(self) -> list[tuple[str, bytes]]:
        return [(f"{self.path}:{number}", line) for number, line in enumerate(self.lines, start=1)]


def missing_heads(heads: Iterable[str], chains: Iterable[Iterable[bytes]]) -> Iterator[Fault]:
    """Those of the `heads`, noted earlier, that none of the `chains` holds any more: its end was cut off or changed."""
    seen = set[str | None]()
    for records in chains:
        at = Link()
        for data in records:
            at = at.after(data)
            seen.add(at.digest)
    for head in heads:
        if head not in seen:
            yield Fault(head, "was the head of a log once, and no log holds it now: records were cut off or changed")


def moment(record: dict[str, Any]) -> datetime:
    """When a record was written."""
    return datetime.fromisoformat(str(record["at"]))


def _releases_of(store: Store, channel: str) -> dict[int, str]:
    try:
        return {entry.generation: entry.release for entry in store.history(channel)}
    except (FormatError, StoreError):
        return {}  # so every record of it is told to differ from the store
