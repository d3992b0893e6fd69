"""Channels: a chain of entries, one per generation, each written with put-if-absent.

Creating generation N+1 is the compare-and-swap: of two writers that saw generation N, one creates the object and
the other learns that it exists. Nothing is ever overwritten, so generations only grow and the history is kept.
"""

from datetime import UTC, datetime
from typing import Literal

from unlearn_serve.errors import ChannelConflict, ChannelNotFound, FormatError, StoreError, StoreUnavailable
from unlearn_serve.format.strict_json import one_line_errors
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
from unlearn_serve.store.releases import Releases


class Channels:
    """The part of a store under channels/."""

    def __init__(self, backend: Backend, releases: Releases) -> None:
        """Use the objects of `backend`; only what `releases` verifies can go live."""
        self._backend = backend
        self._releases = releases

    def promote(
        self, digest: str, channel: str, *, expected_generation: int | None, actor: str, reason: str
    ) -> ChannelEntry:
        """See `Store.promote`."""
        require_channel_name(channel)
        live = self.newest(channel)
        self._check_expected(channel, live, expected_generation)
        self._releases.load(digest)
        return self._append(channel, live, digest, "promote", None, actor, reason)

    def rollback(
        self, channel: str, *, to_generation: int | None, expected_generation: int | None, actor: str, reason: str
    ) -> ChannelEntry:
        """See `Store.rollback`."""
        live = self.newest(require_channel_name(channel))
        self._check_expected(channel, live, expected_generation)
        if live == 0:
            raise self._not_found(channel)
        if to_generation is None:
            target = self._before(self.read(channel, live))
        elif 1 <= to_generation <= live:
            target = self.read(channel, to_generation)
        else:
            raise StoreError(f"channel {channel!r}: expected one of generations 1 to {live}, got {to_generation}")
        self._releases.load(target.release)
        return self._append(channel, live, target.release, "rollback", target.promoted_at, actor, reason)

    def current(self, channel: str) -> ChannelEntry:
        """See `Store.channel`."""
        newest = self.newest(require_channel_name(channel))
        if newest == 0:
            raise self._not_found(channel)
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
            raise StoreUnavailable(
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
            raise self._not_found(channel)
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

    def _before(self, live: ChannelEntry) -> ChannelEntry:
        """The entry under which, before the promote behind `live`, another release was live.

        Jumps from promote to promote, past what lies between a promote and the rollback that restored it: a release
        that was rolled back does not come back.
        """
        promoted_at = live.promoted_at
        while promoted_at > 1:
            entry = self.read(live.channel, promoted_at - 1)
            if entry.release != live.release:
                return entry
            promoted_at = entry.promoted_at
        raise StoreError(
            f"channel {live.channel!r}: no other release was live before generation {live.promoted_at}, so there is "
            "nothing to roll back to; promote another release instead"
        )

    def _append(
        self,
        channel: str,
        live: int,
        release: str,
        action: Literal["promote", "rollback"],
        restores: int | None,
        actor: str,
        reason: str,
    ) -> ChannelEntry:
        with one_line_errors(f"channel {channel!r}", FormatError):
            entry = ChannelEntry(
                channel=channel,
                generation=live + 1,
                release=release,
                action=action,
                restores_generation=restores,
                at=datetime.now(UTC),
                actor=actor,
                reason=reason,
            )
        if not self._backend.create(entry_path(channel, entry.generation), entry.to_bytes()):
            winner = self.read(channel, entry.generation)
            raise ChannelConflict(
                f"channel {channel!r}: {winner.actor} made generation {winner.generation} first ({winner.action} of "
                f"{winner.release}); nothing was changed: look at the channel and decide again"
            )
        return entry

    def _check_expected(self, channel: str, live: int, expected: int | None) -> None:
        if expected is not None and expected != live:
            raise ChannelConflict(
                f"channel {channel!r}: expected generation {expected}, got {live}; nothing was changed: look at the "
                "channel and decide again"
            )

    def _generations(self, channel: str, *, after: str | None = None) -> list[int]:
        found = (generation_of(one.path) for one in self._backend.objects(f"channels/{channel}", after=after))
        return sorted(generation for generation in found if generation)

    def _not_found(self, channel: str) -> ChannelNotFound:
        return ChannelNotFound(
            f"store {self._backend.name!r} holds no channel {channel!r}; promote a release to it to make it"
        )
