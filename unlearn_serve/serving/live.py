"""What this API server knows to be live: the one object that responses, status and counters read."""

import time
from collections import deque
from dataclasses import dataclass, field

from unlearn_serve.serving.board import Board, Record
from unlearn_serve.serving.records import SwapRecord
from unlearn_serve.store import ChannelEntry

PLAIN = "plain"
HISTORY_LENGTH = 1000


@dataclass(kw_only=True)
class Live:
    """Mutated by the follower only, or by the observer in its place, on the event loop."""

    channel: str
    entry: ChannelEntry | None = None
    """The channel entry whose release is live; None is the plain model."""
    deletion_ids: tuple[str, ...] = ()
    since: float = field(default_factory=time.time)
    """Unix time, seconds."""
    broken: str | None = None
    """Why nothing may be served any more: a swap could be neither completed nor undone."""
    store_error: str | None = None
    refused: str | None = None
    """Why the channel's newest entry is not live."""
    swaps: deque[SwapRecord] = field(default_factory=lambda: deque(maxlen=HISTORY_LENGTH))
    board: Board | None = None
    """Where the other API servers read what is live."""

    @property
    def release(self) -> str:
        """Digest of the live release, or `plain`."""
        return self.entry.release if self.entry else PLAIN

    @property
    def generation(self) -> int:
        """Generation of the channel that is live; 0 is the plain model."""
        return self.entry.generation if self.entry else 0

    @property
    def fingerprint(self) -> str:
        """The value of `system_fingerprint`: unlearn-<16 digits of the release>-g<generation>, or unlearn-plain."""
        return f"unlearn-{self.release[:16]}-g{self.generation}" if self.entry else f"unlearn-{PLAIN}"

    def move_to(self, entry: ChannelEntry | None, deletion_ids: tuple[str, ...]) -> None:
        """Name `entry` as live from this moment on."""
        self.entry = entry
        self.deletion_ids = deletion_ids
        self.since = time.time()
        self.refused = None
        self._show()

    def break_off(self, why: str) -> None:
        """Let nothing be served any more."""
        self.broken = why
        self._show()

    def show_on(self, board: Board) -> None:
        """Let the other API servers read what is live, from now on."""
        self.board = board
        self._show()

    def _show(self) -> None:
        if self.board is not None:
            self.board.write(Record(entry=self.entry, broken=self.broken))
