"""Channels as readers see them: a chain of entries, one per generation, of which the last is live."""

import hashlib
from contextlib import suppress

from unlearn_serve.errors import (
    ChannelNotFound,
    DigestError,
    DowngradeRefused,
    FormatError,
    HistoryBroken,
    StoreError,
    TrustError,
)
from unlearn_serve.store.backend import Backend
from unlearn_serve.store.channel_entry import (
    MAX_ENTRY_BYTES,
    MAX_GENERATION,
    ChannelEntry,
    entry_path,
    generation_of,
    is_channel_name,
    require_channel_name,
)
from unlearn_serve.store.signatures import Signatures


class Channels:
    """The part of a store under channels/."""

    def __init__(self, backend: Backend, signatures: Signatures) -> None:
        """Use the objects of `backend`; `signatures` knows whom to trust."""
        self._backend = backend
        self._signatures = signatures

    def current(self, channel: str) -> ChannelEntry:
        """See `Store.channel`."""
        newest = self.newest(require_channel_name(channel))
        if newest == 0:
            raise self.not_found(channel)
        return self.read(channel, newest)

    def after(self, channel: str, generation: int) -> ChannelEntry | None:
        """See `Store.channel_after`."""
        require_channel_name(channel)
        if not 0 <= generation <= MAX_GENERATION:
            raise StoreError(f"generation: expected 0 to {MAX_GENERATION}, got {generation}")
        # The listing starts one before, so that it also tells whether `generation` is still there.
        after = entry_path(channel, generation - 1) if generation else None
        found = self._generations(channel, after=after)
        if generation and generation not in found:
            raise DowngradeRefused(
                f"channel {channel!r} no longer holds generation {generation}: was the store in {self._backend.name!r} "
                "emptied or restored from a backup? Promote until its generation is beyond that one"
            )
        if not found or found[-1] == generation:
            return None
        return self.read(channel, found[-1])

    def history(self, channel: str) -> list[ChannelEntry]:
        """See `Store.history`."""
        generations = self._generations(require_channel_name(channel))
        if not generations:
            raise self.not_found(channel)
        return [self.read(channel, generation) for generation in generations]

    def names(self) -> list[str]:
        """See `Store.channels`."""
        return [name for name in self._backend.children("channels") if is_channel_name(name) and self.newest(name)]

    def newest(self, channel: str) -> int:
        """The newest generation, 0 where there is no such channel."""
        return max(self._generations(channel), default=0)

    def read(self, channel: str, generation: int) -> ChannelEntry:
        """The entry of one generation.

        Raises:
            FormatError: it is missing, malformed, or the entry of another place.
        """
        path = entry_path(channel, generation)
        data = self._backend.read(path, limit=MAX_ENTRY_BYTES)
        if data is None:
            raise FormatError(f"{path}: expected this generation's entry, got none; the channel's history has a gap")
        entry = ChannelEntry.from_bytes(data, source=path)
        if (entry.channel, entry.generation) != (channel, generation):
            raise FormatError(f"{path}: expected the entry of this place, got {entry.channel!r} {entry.generation}")
        return entry

    def read_trusted(self, channel: str, generation: int) -> ChannelEntry:
        """As `read`; raises `TrustError` where trusted keys are set and none of them signed it."""
        entry = self.read(channel, generation)
        self.require_trusted(entry)
        return entry

    def require_trusted(self, entry: ChannelEntry) -> None:
        """Return if a trusted key signed `entry`, or no keys are set; raises `TrustError`."""
        self._signatures.require(entry.to_bytes(), what=f"channel {entry.channel!r} generation {entry.generation}")

    def since(self, applied: ChannelEntry, entry: ChannelEntry) -> list[ChannelEntry]:
        """`entry` and those before it, newest first, down to but without `applied`.

        With trusted keys, these are the entries that `entry`, which one of them signed, vouches for: each is named as
        `previous` by the one after it, whoever signed it at the time. What was written in between past the keys is not
        among them. Without keys, all that can be read.

        Raises:
            HistoryBroken: trusted keys are set, and the way from `entry` does not lead to `applied`: it was signed for
                the same channel of another store, or the history was rewritten.
        """
        if entry == applied:
            return []
        if self._signatures.trusted_keys and entry.previous == applied.digest:
            return [entry]
        between = self._readable(entry.channel, applied.generation, entry.generation)
        if not self._signatures.trusted_keys:
            return [entry, *between]
        by_digest = {one.digest: one for one in between}
        found = [entry]
        while (previous := found[-1].previous) != applied.digest:
            if previous not in by_digest:
                raise HistoryBroken(
                    f"channel {entry.channel!r} generation {entry.generation}: expected an entry that descends from "
                    f"generation {applied.generation} as it was applied, got one with another history: signed for "
                    "another store, or after a restore from a backup (operations.md, section 5)"
                )
            found.append(by_digest[previous])
        return found

    def last_sound(self, channel: str, newest: int) -> ChannelEntry | None:
        """The newest entry, of `newest` or before, that can be read and is trusted: what the next one follows."""
        for generation in range(newest, 0, -1):
            with suppress(FormatError, TrustError):
                return self.read_trusted(channel, generation)
        return None

    def _readable(self, channel: str, after: int, before: int) -> list[ChannelEntry]:
        found = []
        for generation in reversed(self._generations(channel, after=entry_path(channel, after))):
            with suppress(FormatError):
                if generation < before:
                    found.append(self.read(channel, generation))
        return found

    def stored_digest(self, channel: str, generation: int) -> str | None:
        """SHA-256 of an entry's bytes, sound or not; None where it is gone."""
        try:
            data = self._backend.read(entry_path(channel, generation), limit=MAX_ENTRY_BYTES)
        except DigestError:
            return None
        return None if data is None else hashlib.sha256(data).hexdigest()

    def _generations(self, channel: str, *, after: str | None = None) -> list[int]:
        found = (generation_of(one.path) for one in self._backend.objects(f"channels/{channel}", after=after))
        return sorted(generation for generation in found if generation)

    def not_found(self, channel: str) -> ChannelNotFound:
        """The error that says that there is no such channel."""
        return ChannelNotFound(
            f"store {self._backend.name!r} holds no channel {channel!r}; promote a release to it to make it"
        )
