"""Digests of weight files, kept in the user's cache folder, so that gigabytes are hashed once.

An entry is keyed by each file's real path, size, inode and times of last change, of content (mtime) and of inode
(ctime): a file that was replaced is hashed again even where its mtime was set back.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from unlearn_serve.errors import FormatError
from unlearn_serve.format.atomic import write_atomically
from unlearn_serve.format.fields import require_sha256

_VERSION = 1


def cache_folder() -> Path:
    """The folder of the entries: $XDG_CACHE_HOME or ~/.cache, then unlearn-serve/fingerprints."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "unlearn-serve" / "fingerprints"


def cached_digest(files: list[Path], compute: Callable[[], str]) -> str:
    """The digest kept for `files` in their present state; computed, and kept, where there is none.

    A cache that cannot be read or written costs time and nothing else.

    Raises:
        FormatError: one of `files` is missing.
    """
    before = _key(files)
    entry = cache_folder() / before
    with suppress(OSError, ValueError, FormatError):
        return require_sha256(entry.read_text("ascii"), what=str(entry))
    digest = compute()
    if _key(files) == before:  # else a file changed while it was read
        _keep(entry, digest)
    return digest


def _key(files: list[Path]) -> str:
    state: list[object] = [_VERSION]
    for file in files:
        try:
            path = file.resolve(strict=True)
            found = path.stat()
        except OSError as problem:
            raise FormatError(f"{file}: expected a weight file, got: {problem.strerror}") from None
        state.append([str(path), found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns])
    return hashlib.sha256(json.dumps(state).encode("ascii")).hexdigest()


def _keep(entry: Path, digest: str) -> None:
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(entry, digest.encode("ascii"))
