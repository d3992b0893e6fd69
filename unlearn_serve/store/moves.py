"""Moves of a channel: each creates the entry of the next generation with put-if-absent.

That is the compare-and-swap: of two writers that saw generation N, one creates N+1 and the other learns that it exists.
Nothing is ever overwritten, so generations only grow and the history is kept.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from unlearn_serve.errors import ChannelConflict, FormatError, StoreError, Unsigned
from unlearn_serve.format.keys import SigningKey
from unlearn_serve.format.strict_json import one_line_errors
from unlearn_serve.store.audit import StoreAudit
from unlearn_serve.store.backend import Backend
from unlearn_serve.store.channel_entry import MAX_ENTRY_BYTES, ChannelEntry, entry_path, require_channel_name
from unlearn_serve.store.channels import Channels
from unlearn_serve.store.coverage import uncovered_by_move
from unlearn_serve.store.releases import Release, Releases
from unlearn_serve.store.signatures import Signatures


@dataclass(frozen=True, kw_only=True)
class Move:
    """What a writer says of its move of a channel, and what of it must hold."""

    actor: str
    reason: str
    expected_generation: int | None = None
    """The move fails unless this is the newest generation; 0: the channel does not exist."""
    allow_uncover: bool = False
    """Deletion requests may be given back; `reason` must say why."""
    signer: SigningKey | None = None


class Moves:
    """The writer's side of a store's channels."""

    def __init__(
        self, backend: Backend, releases: Releases, channels: Channels, signatures: Signatures, audit: StoreAudit
    ) -> None:
        """Use the objects of `backend`; only what `releases` and `signatures` verify can go live; `audit` notes it."""
        self._audit = audit
        self._backend = backend
        self._releases = releases
        self._channels = channels
        self._signatures = signatures

    def promote(self, digest: str, channel: str, move: Move) -> ChannelEntry:
        """See `Store.promote`."""
        live = self._channels.newest(require_channel_name(channel))
        self._check_expected(channel, live, move.expected_generation)
        return self._append(channel, live, self._releases.load(digest), "promote", None, move)

    def rollback(self, channel: str, to_generation: int | None, move: Move) -> ChannelEntry:
        """See `Store.rollback`."""
        live = self._channels.newest(require_channel_name(channel))
        self._check_expected(channel, live, move.expected_generation)
        if live == 0:
            raise self._channels.not_found(channel)
        if to_generation is None:
            target = self._before(self._channels.read_trusted(channel, live))
        elif 1 <= to_generation <= live:
            target = self._channels.read_trusted(channel, to_generation)
        else:
            raise StoreError(f"channel {channel!r}: expected one of generations 1 to {live}, got {to_generation}")
        return self._append(channel, live, self._releases.load(target.release), "rollback", target.promoted_at, move)

    def _before(self, live: ChannelEntry) -> ChannelEntry:
        """The entry under which, before the promote behind `live`, another release was live.

        Jumps from promote to promote, past what lies between a promote and the rollback that restored it: a release
        that was rolled back does not come back.
        """
        promoted_at = live.promoted_at
        while promoted_at > 1:
            entry = self._channels.read_trusted(live.channel, promoted_at - 1)
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
        release: Release,
        action: Literal["promote", "rollback"],
        restores: int | None,
        move: Move,
    ) -> ChannelEntry:
        if self._signatures.trusted_keys and (
            move.signer is None or move.signer.public not in self._signatures.trusted_keys
        ):
            raise Unsigned(
                f"channel {channel!r}: expected a signing key that is trusted, to sign this move, got "
                f"{move.signer.public[:16] if move.signer else 'none'}; move the channel with `unlearn-serve {action} "
                "--sign KEY` where the key is"
            )
        uncovers = uncovered_by_move(
            self._channels,
            self._releases,
            channel,
            live,
            release.manifest,
            allow=move.allow_uncover,
            reason=move.reason,
        )
        before = self._channels.last_sound(channel, live)
        with one_line_errors(f"channel {channel!r}", FormatError):
            entry = ChannelEntry(
                channel=channel,
                generation=live + 1,
                release=release.digest,
                action=action,
                restores_generation=restores,
                at=datetime.now(UTC),
                actor=move.actor,
                reason=move.reason,
                uncovers=uncovers,
                previous=before.digest if before else None,
            )
        if len(data := entry.to_bytes()) > MAX_ENTRY_BYTES:
            raise FormatError(
                f"channel {channel!r}: expected an entry of at most {MAX_ENTRY_BYTES} bytes, got {len(data)}"
            )
        self._audit.append(
            signer=move.signer,
            actor=move.actor,
            event=action,
            document=entry.digest,
            release=entry.release,
            channel=channel,
            generation=entry.generation,
            deletion_ids=release.manifest.deletion_ids,
            uncovers=uncovers,
            reason=move.reason,
        )
        if move.signer is not None:  # first, so that an entry is never visible without it
            self._signatures.add(data, move.signer)
        if not self._backend.create(entry_path(channel, entry.generation), data):
            if move.signer is not None:  # nobody shall put this entry in the winner's place later
                self._signatures.remove(data, move.signer)
            winner = self._channels.read(channel, entry.generation)
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
