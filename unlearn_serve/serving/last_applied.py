"""The release a server applied last, kept beside it, so that it can start again while the store is away."""

import logging
from collections.abc import Collection
from pathlib import Path

from unlearn_serve.errors import FormatError, UnlearnServeError
from unlearn_serve.format.atomic import write_atomically
from unlearn_serve.store import ChannelEntry, Release, Store
from unlearn_serve.store.channel_entry import MAX_ENTRY_BYTES

logger = logging.getLogger("vllm.unlearn_serve")

_ENTRY = "last_applied.json"
_RELEASES = "releases"


class LastApplied:
    """One folder: the channel entry that was applied last, and a small store with its release."""

    def __init__(self, directory: Path, trusted_keys: Collection[str] = ()) -> None:
        self._directory = directory
        self._trusted_keys = trusted_keys

    def remember(self, entry: ChannelEntry, store: Store) -> None:
        """Copy the entry's release from `store`, with all signatures, then name it; a crash in between keeps the old.

        Raises:
            StoreError: the release cannot be read or copied.
            OSError: the folder cannot be written.
        """
        mine = self._store(create=True)
        mine.copy_release(entry.release, store)
        mine.copy_signatures(entry, store)
        write_atomically(self._directory / _ENTRY, entry.to_bytes())

    def recall(self) -> tuple[ChannelEntry, Release] | None:
        """Return the entry and its verified release; None where nothing was remembered.

        Raises:
            TrustError: no trusted key signed what was remembered.
            UnlearnServeError: what was remembered is damaged.
        """
        entry = self._entry()
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
