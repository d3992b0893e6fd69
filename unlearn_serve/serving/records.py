"""What is remembered of each swap, in memory and in the audit log."""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from unlearn_serve.format.atomic import sync_folder
from unlearn_serve.format.chain import Link, head_of, lines_of

Event = Literal["start", "swap", "refusal", "relabel", "store-unreachable", "store-reachable", "broken"]


class SwapRecord(BaseModel):
    """One line of the audit log. Times are UTC, durations milliseconds."""

    model_config = ConfigDict(frozen=True)

    event: Event
    at: datetime
    channel: str
    ok: bool
    release: str | None = None
    generation: int | None = None
    action: str | None = None
    """promote or rollback, as the channel says."""
    deletion_ids: tuple[str, ...] = ()
    previous_release: str | None = None
    mode: str | None = None
    """recompute, drain or abort."""
    stage_ms: float | None = None
    """Reading, verifying and copying the release, while serving went on."""
    drain_ms: float | None = None
    """How long running requests were waited for, while new ones queued; mode `drain` only."""
    drained: bool | None = None
    """False where the drain took too long, so that what still ran was recomputed; mode `drain` only."""
    stall_ms: float | None = None
    """From the call that pauses generation (or the end of the drain) to the return of the one that resumes it."""
    publish_to_live_ms: float | None = None
    """From the channel's move (its `at`) until every worker had flipped."""
    actor: str | None = None
    reason: str | None = None
    uncovers: tuple[str, ...] = ()
    """Deletion requests that the channel's move gave back on purpose."""
    error: str | None = None


class AuditLog:
    """An append-only JSONL file, one record a line, on disk before `append` returns.

    Each line has `seq`, counted from 1, and `previous`, the SHA-256 of the line before, so that a change shows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._between_processes = FileLock(path.with_name(f"{path.name}.lock"), timeout=5)
        self._size, self._at = -1, Link()

    def append(self, record: SwapRecord) -> None:
        """Write one record and sync it to disk.

        Raises:
            OSError: the file cannot be written.
        """
        fields = record.model_dump(mode="json", exclude_none=True)
        with self._lock, self._between_processes, self.path.open("ab+") as file:
            if file.seek(0, os.SEEK_END) != self._size:  # the first time, or another server of this folder wrote
                self._at = self._end_of(file)
            fields |= {"seq": self._at.seq + 1, "previous": self._at.digest}
            line = json.dumps(fields, separators=(",", ":")).encode()
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
            if not self._at.seq:  # a file that is new is an entry of its folder
                sync_folder(self.path.parent)
            self._at, self._size = self._at.after(line), file.tell()

    def _end_of(self, file: BinaryIO) -> Link:
        """Where the chain stands; half a line of a writer that was killed is ended, and stays to be seen."""
        file.seek(0)
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.write(b"\n")
        return head_of(lines_of(data))


def now() -> datetime:
    """Return the present moment, UTC."""
    return datetime.now(UTC)
