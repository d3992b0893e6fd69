"""A fault in one process of several, made from outside: it can open no more files, and so read no release."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path


@contextmanager
def no_more_files(*pids: int) -> Iterator[None]:
    """Let these processes go on with what they have open, and open nothing else."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    try:
        for pid, (_, hard) in before.items():
            used = {int(handle.name) for handle in Path(f"/proc/{pid}/fd").iterdir()}
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (next(one for one in count() if one not in used), hard))
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
