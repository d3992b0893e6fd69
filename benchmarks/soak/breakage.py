"""Ways to break files and processes for a while: real ones, and each undoes itself."""

import fcntl
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships no types


@contextmanager
def truncated(file: Path) -> Iterator[None]:
    """Cut a file at rest in half; put the other half back at the end."""
    whole = file.read_bytes()
    os.truncate(file, len(whole) // 2)
    try:
        yield
    finally:
        file.write_bytes(whole)


@contextmanager
def away(folder: Path) -> Iterator[None]:
    """Rename a folder, as a disk that is no longer mounted."""
    elsewhere = folder.with_name(f"{folder.name}-away")
    folder.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(folder)


@contextmanager
def slow_to_open(file: Path) -> Iterator[None]:
    """Let whoever opens `file` wait until the block ends: a lease on it, which the kernel asks back (45 s at most)."""
    handle = os.open(file, os.O_RDWR)
    try:
        # The kernel says by a signal that somebody waits; this one is ignored by default, unlike SIGIO.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        try:
            yield
        finally:
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        os.close(handle)


@contextmanager
def no_room(pid: int, most_bytes: int) -> Iterator[None]:
    """Let a process write no file beyond `most_bytes`: its writes fail as on a full disk, and only its own."""
    process = psutil.Process(pid)
    soft, hard = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        if process.is_running():
            process.rlimit(resource.RLIMIT_FSIZE, (soft, hard))
