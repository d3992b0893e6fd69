"""The release a server applied last, kept beside it, so that it can start again while the store is away."""

import logging
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from unlearn_serve.errors import FormatError, NotEnforced, UnlearnServeError
from unlearn_serve.format.atomic import sync_folder, write_atomically
from unlearn_serve.store import ChannelEntry, Release, Store
from unlearn_serve.store.channel_entry import MAX_ENTRY_BYTES

logger = logging.getLogger("vllm.unlearn_serve")

_ENTRY = "last_applied.json"
_RELEASES = "releases"
_MARK = re.compile(r"served-([0-9]{20})-([0-9a-f]{64}|plain)")


class LastApplied:
    """One folder: the channel entry that was applied last, a small store with its release, and a mark.

    The mark is an empty file whose name says under which entry tokens may have been served last. A start takes what is
    kept only where it is that very entry: so neither a death between the two, nor a full disk, nor damage brings an
    older release back, or the plain model.
    """

    def __init__(self, directory: Path, trusted_keys: Collection[str] = ()) -> None:
        self._directory = directory
        self._trusted_keys = trusted_keys

    def mark(self, entry: ChannelEntry | None) -> None:
        """Note that `entry` (None: the plain model) may be served from now on; on disk before this returns.

        After the first time it is a rename, which a full disk does not keep from happening.

        Raises:
            OSError: the folder cannot be changed.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / _mark_of(entry)
        marks = self._marks()
        if not marks:
            path.touch()
        elif marks[-1] != path:
            marks[-1].replace(path)
        else:
            return
        sync_folder(self._directory)

    @property
    def marked(self) -> tuple[int, str]:
        """Generation and digest of the entry that may have been served last; generation 0 for none, or no mark."""
        marks = self._marks()
        if not marks:
            return 0, ""
        _, generation, digest = marks[-1].name.split("-")
        return int(generation), digest

    def remember(self, entry: ChannelEntry, store: Store) -> None:
        """Copy the entry's release from `store`, with all signatures, then name it; a crash in between keeps the old.

        What was kept before is removed at the end, or a year of deletions would fill the disk.

        Raises:
            StoreError: the release cannot be read or copied.
            OSError: the folder cannot be written.
        """
        mine = self._store(create=True)
        mine.copy_release(entry.release, store)
        mine.copy_signatures(entry, store)
        write_atomically(self._directory / _ENTRY, entry.to_bytes())
        for kept in list((self._directory / _RELEASES).glob("*/*")):
            if kept.name not in (entry.release, entry.digest):
                shutil.rmtree(kept, ignore_errors=True)

    def recall(self) -> tuple[ChannelEntry, Release] | None:
        """Return the entry and its verified release; None where nothing was remembered.

        Raises:
            NotEnforced: something else was served since.
            TrustError: no trusted key signed what was remembered.
            UnlearnServeError: what was remembered is damaged.
        """
        entry = self._entry()
        marks = self._marks()
        if marks and marks[-1].name != _mark_of(entry):
            kept = f"generation {entry.generation}" if entry else "nothing"
            raise NotEnforced(
                f"{self._directory}: expected to find kept what was served last, {marks[-1].name}, got {kept}: it is "
                "damaged, or the server was killed or its disk full before it was kept; start it with the store at hand"
            )
        if entry is None:
            return None
        store = self._store()
        store.admit(entry)
        return entry, store.load_release(entry.release)

    def memory(self) -> tuple[ChannelEntry, tuple[str, ...]] | None:
        """Return the entry and the deletion requests it covers, whoever signed it; None where nothing can be read.

        For comparison only: keys may have changed since, but generations still only grow.
        """
        try:
            entry = self._entry()
            if entry is None:
                return None
            kept = Store.open(str(self._directory / _RELEASES))
            return entry, kept.load_manifest(entry.release).deletion_ids
        except UnlearnServeError as error:
            logger.warning("unlearn-serve: what was applied last is not known: %s", error)
            return None

    def _marks(self) -> list[Path]:
        """There is one, unless servers share the folder; oldest first."""
        if not self._directory.is_dir():
            return []
        return sorted(path for path in self._directory.iterdir() if _MARK.fullmatch(path.name))

    def _entry(self) -> ChannelEntry | None:
        path = self._directory / _ENTRY
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnlearnServeError(f"{path}: cannot be read: {error}") from error
        return ChannelEntry.read(data, source=str(path), max_bytes=MAX_ENTRY_BYTES, error=FormatError)

    def _store(self, *, create: bool = False) -> Store:
        return Store.open(str(self._directory / _RELEASES), create=create, trusted_keys=self._trusted_keys)


def _mark_of(entry: ChannelEntry | None) -> str:
    return f"served-{entry.generation:020d}-{entry.digest}" if entry else f"served-{0:020d}-plain"
