"""What is live, in memory that the API servers of one `vllm serve` share: the first of them writes, the others read.

Reading costs about a microsecond where nothing is new, so the others look at each response and each batch of outputs.
The file begins with a head, little-endian: 32 bytes that only this run has, u64 number of the newest record, its u32
length and u32 CRC-32. Records, a letter and an entry's bytes or a reason, take turns in the two places that follow, so
that the newest stays whole while the next is written. One that was overwritten while it was read does not match its
CRC, and is read again.
"""

import hashlib
import mmap
import multiprocessing
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from unlearn_serve.errors import NotEnforced
from unlearn_serve.format.atomic import write_atomically
from unlearn_serve.store import ChannelEntry
from unlearn_serve.store.channel_entry import MAX_ENTRY_BYTES

_HEAD = struct.Struct("<32sQII")
_PLACE = 1 + MAX_ENTRY_BYTES
_SIZE = _HEAD.size + 2 * _PLACE
_READS = 1000
_ENTRY, _PLAIN, _BROKEN = b"e", b"p", b"b"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is live, as the API server that swaps says it."""

    entry: ChannelEntry | None = None
    """None is the plain model, or unknown."""
    broken: str | None = None
    """Why nothing may be served any more."""


class Board:
    """A file that all API servers of one run have mapped into memory."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._path = path
        self._number = 0

    @classmethod
    def create(cls, path: Path) -> "Board":
        """Put an empty board in the place of an earlier run's; from then on nothing fails for want of room.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _HEAD.pack(_run(), 0, 0, 0).ljust(_SIZE, b"\0"), mode=0o600)
        return cls(path)

    @classmethod
    def of_this_run(cls, path: Path) -> "Board | None":
        """Return the board at `path`; None where there is none yet, or an earlier run's."""
        try:
            board = cls(path)
        except (FileNotFoundError, PermissionError, ValueError):  # another user's; of another size
            return None
        return board if board._head()[0] == _run() else None

    def write(self, record: Record) -> None:
        """Show what is live, to readers that look from now on. For one writer; does not fail."""
        if record.broken is not None:
            data = _BROKEN + record.broken.encode()[:MAX_ENTRY_BYTES]
        else:
            data = _PLAIN if record.entry is None else _ENTRY + record.entry.to_bytes()
        self._number += 1
        head, start = _HEAD.pack(_run(), self._number, len(data), zlib.crc32(data)), _place(self._number)
        # First what is said, then the number by which readers see that it is new.
        self._map[start : start + len(data)] = data
        self._map[: _HEAD.size] = head

    def read(self) -> Record | None:
        """Return what is live; None where nothing new has been written.

        Raises:
            NotEnforced: what is there cannot be read.
        """
        for _ in range(_READS):
            _, number, length, crc = self._head()
            if number == self._number:
                return None
            start = _place(number)
            data = self._map[start : start + min(length, _PLACE)]
            if zlib.crc32(data) == crc:
                self._number = number
                return self._parsed(data[:1], data[1:])
        raise NotEnforced(f"{self._path}: expected what the first API server made live, got damage; restart the server")

    def _parsed(self, kind: bytes, rest: bytes) -> Record:
        if kind == _BROKEN:
            return Record(broken=rest.decode(errors="replace"))
        return Record(entry=ChannelEntry.from_bytes(rest, source=str(self._path)) if kind == _ENTRY else None)

    def _head(self) -> tuple[bytes, int, int, int]:
        return _HEAD.unpack(self._map[: _HEAD.size])


def _place(number: int) -> int:
    return _HEAD.size + number % 2 * _PLACE


def _run() -> bytes:
    # multiprocessing hands the random key of a process on to all that it starts: those of one run have the same.
    return hashlib.sha256(bytes(multiprocessing.current_process().authkey) + str(os.getppid()).encode()).digest()
