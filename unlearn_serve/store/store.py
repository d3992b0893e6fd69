"""`Store`: releases and channels behind one URL, on a folder or an object store."""

from collections.abc import Collection
from datetime import timedelta
from pathlib import Path

from unlearn_serve.format.keys import SigningKey
from unlearn_serve.store.backend import Backend
from unlearn_serve.store.channel_entry import ChannelEntry
from unlearn_serve.store.garbage import Garbage, find_garbage
from unlearn_serve.store.moves import Move, Moves
from unlearn_serve.store.reader import StoreReader

UNNAMED = "unnamed"
"""Actor of what a caller does without saying who it is."""


class Store(StoreReader):
    """Where the trainer publishes and the server reads."""

    def __init__(self, backend: Backend, *, trusted_keys: Collection[str] = ()) -> None:
        """Use the objects of `backend`; see `open`."""
        super().__init__(backend, trusted_keys=trusted_keys)
        self._moves = Moves(backend, self._releases, self._channels, self._signatures, self._audit)

    def publish(self, adapter_dir: Path, *, actor: str = UNNAMED, signer: SigningKey | None = None) -> str:
        """Publish the adapter in `adapter_dir` as a release, signed by `signer` if given, and return its digest.

        Checks everything first, then writes the adapter files and, last, the manifest that makes the release visible.
        Killed at any point it leaves nothing that a reader sees; doing it again completes it. Publishing what is
        there already changes nothing, except that files with wrong bytes are replaced by the right ones.

        Raises:
            ManifestError, AdapterFileError, DigestError: the directory breaks the format; nothing was written.
        """
        return self._releases.publish(adapter_dir, actor=actor, signer=signer)

    def sign(self, digest: str, key: SigningKey, *, actor: str = UNNAMED) -> None:
        """Add the signature of a release by `key`; the release is verified first, byte by byte and by trusted keys.

        Raises:
            ReleaseNotFound, DigestError, ManifestError, AdapterFileError, TrustError: as `load_release`.
        """
        manifest = self._releases.load(digest).manifest
        self._audit.append(
            signer=key,
            actor=actor,
            event="sign",
            document=digest,
            release=digest,
            deletion_ids=manifest.deletion_ids,
        )
        self._signatures.add(manifest.to_bytes(), key)

    def sign_channel(self, name: str, key: SigningKey, *, actor: str = UNNAMED) -> ChannelEntry:
        """Add the signature by `key` of a channel's newest entry and of its release; returns the entry.

        Raises:
            ChannelNotFound, FormatError, TrustError: as `channel` and `load_release`.
        """
        entry = self.channel(name)
        self._channels.require_trusted(entry)
        self.sign(entry.release, key, actor=actor)
        self._audit.append(
            signer=key,
            actor=actor,
            event="sign",
            document=entry.digest,
            release=entry.release,
            channel=name,
            generation=entry.generation,
        )
        self._signatures.add(entry.to_bytes(), key)
        return entry

    def copy_release(self, digest: str, source: "Store") -> None:
        """Copy a release from `source`, verified, under the same digest.

        Raises:
            ReleaseNotFound, DigestError, ManifestError, AdapterFileError: as `load_release` on `source`.
        """
        self._releases.copy(digest, source._releases)

    def copy_signatures(self, entry: ChannelEntry, source: "Store") -> None:
        """Copy the signatures of `entry` by the keys that `source` trusts."""
        self._signatures.copy(entry.to_bytes(), source._signatures)

    def promote(
        self,
        digest: str,
        channel: str,
        *,
        expected_generation: int | None = None,
        actor: str,
        reason: str = "",
        allow_uncover: bool = False,
        signer: SigningKey | None = None,
    ) -> ChannelEntry:
        """Make release `digest` live on `channel`, as its next generation; the first one makes the channel.

        Args:
            digest: the release; it is loaded and verified first.
            channel: 1 to 64 of a-z 0-9 . _ - that start with a letter or digit.
            expected_generation: refuse unless this is the newest generation (0: the channel does not exist).
            actor: who does it; one line.
            reason: why; one line.
            allow_uncover: the release may leave out deletion requests that the one live before covers; needs `reason`.
            signer: key that signs the entry; needed where this store was opened with trusted keys, and one of them.
                Open it with them whenever you sign: an entry vouches for the one it follows, which then must be
                signed too.

        Raises:
            ChannelConflict: somebody else moved the channel since `expected_generation`, or during this call.
            DropsDeletions: deletion requests would no longer be covered, and that is not allowed or has no reason.
            ReleaseNotFound, DigestError, ManifestError, AdapterFileError: as `load_release`; the channel did not move.
            Unsigned, BadSignature: this store has trusted keys, and the release or this move lacks a signature by one.
            FormatError: `actor` or `reason` is not one line of text.
        """
        move = Move(
            actor=actor,
            reason=reason,
            expected_generation=expected_generation,
            allow_uncover=allow_uncover,
            signer=signer,
        )
        return self._moves.promote(digest, channel, move)

    def rollback(
        self,
        channel: str,
        *,
        to_generation: int | None = None,
        expected_generation: int | None = None,
        actor: str,
        reason: str = "",
        allow_uncover: bool = False,
        signer: SigningKey | None = None,
    ) -> ChannelEntry:
        """Make an earlier release live again, as the channel's next generation.

        A channel behaves like a stack: a promote lays a release on top, unless it is on top already; a rollback takes
        the top off and what is below is live again. Exactly: let p be the generation of the promote whose release is
        live. What was live under generation p - 1 is restored; if that is the same release, the same is asked of the
        promote behind it. So a second rollback walks back further, and no release that was rolled back returns: after
        promote A, promote B, the first rollback restores A, and the second fails, for nothing was live before A.

        With `to_generation`, the release that was live under that generation is restored. What only the later release
        deleted is known again: that needs `allow_uncover` and a `reason`.

        Raises:
            ChannelNotFound: no such channel.
            StoreError: nothing was live before, or no such generation.
            ChannelConflict, DropsDeletions, ReleaseNotFound, DigestError, ManifestError, AdapterFileError, Unsigned,
                BadSignature, FormatError: as `promote`.
        """
        move = Move(
            actor=actor,
            reason=reason,
            expected_generation=expected_generation,
            allow_uncover=allow_uncover,
            signer=signer,
        )
        return self._moves.rollback(channel, to_generation, move)

    def garbage(self, *, min_age: timedelta) -> list[Garbage]:
        """What nothing needs any more; nothing is changed.

        Kept are: every release that any generation of any channel names, so that every rollback stays possible; the
        releases they were fused from; what is younger than `min_age`, for it may be on its way; and what signs these.
        To keep another release, give it a channel.

        Raises:
            StoreError: a channel's entry or a kept release cannot be read, so that nobody knows what it needs.
        """
        return find_garbage(self._backend, self._releases, self._channels, self._audit, min_age=min_age)

    def collect_garbage(self, *, min_age: timedelta, actor: str = UNNAMED) -> list[Garbage]:
        """Remove what `garbage` finds, and return it. A release vanishes as a whole: its manifest goes first.

        Raises:
            StoreError: as `garbage`; nothing was removed.
        """
        found = self.garbage(min_age=min_age)
        for one in found:
            if one.release is not None:
                self._audit.append(
                    actor=actor, event="remove", document=one.release, release=one.release, reason=one.why
                )
            self._backend.delete(one.path)
        return found
