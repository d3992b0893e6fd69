"""The release a server applied last, kept beside it, so that it can start again while the store is away."""

from pathlib import Path

from unlearn_serve.errors import FormatError, UnlearnServeError
from unlearn_serve.format.atomic import write_atomically
from unlearn_serve.store import ChannelEntry, Release, Store
from unlearn_serve.store.channel_entry import MAX_ENTRY_BYTES

_ENTRY = "last_applied.json"
_RELEASES = "releases"


class LastApplied:
    """One folder: the channel entry that was applied last, and a small store with its release."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def remember(self, entry: ChannelEntry, store: Store) -> None:
        """Copy the entry's release from `store`, then name it; a crash in between keeps what was there.

        Raises:
            StoreError: the release cannot be read or copied.
            OSError: the folder cannot be written.
        """
        mine = Store.open(str(self._directory / _RELEASES), create=True)
        mine.copy_release(entry.release, store)
        write_atomically(self._directory / _ENTRY, entry.to_bytes())

    def recall(self) -> tuple[ChannelEntry, Release] | None:
        """Return the entry and its verified release; None where nothing was remembered.

        Raises:
            UnlearnServeError: what was remembered is damaged.
        """
        path = self._directory / _ENTRY
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnlearnServeError(f"{path}: cannot be read: {error}") from error
        entry = ChannelEntry.read(data, source=str(path), max_bytes=MAX_ENTRY_BYTES, error=FormatError)
        return entry, Store.open(str(self._directory / _RELEASES)).load_release(entry.release)
