"""What is remembered of each swap, in memory and in the audit log."""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

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
    stage_ms: float | None = None
    """Reading, verifying and copying the release, while serving went on."""
    stall_ms: float | None = None
    """From the call that pauses generation to the return of the one that resumes it."""
    publish_to_live_ms: float | None = None
    """From the channel's move (its `at`) until every worker had flipped."""
    actor: str | None = None
    reason: str | None = None
    uncovers: tuple[str, ...] = ()
    """Deletion requests that the channel's move gave back on purpose."""
    error: str | None = None


class AuditLog:
    """An append-only JSONL file, one record a line, on disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, record: SwapRecord) -> None:
        """Write one record and sync it to disk.

        Raises:
            OSError: the file cannot be written.
        """
        line = json.dumps(record.model_dump(mode="json", exclude_none=True), separators=(",", ":")) + "\n"
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def now() -> datetime:
    """Return the present moment, UTC."""
    return datetime.now(UTC)
