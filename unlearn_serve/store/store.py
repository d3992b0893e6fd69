"""`Store`: releases and channels behind one URL, on a folder or an object store."""

from pathlib import Path
from typing import Self

from unlearn_serve.format.manifest import Manifest
from unlearn_serve.store.backend import Backend
from unlearn_serve.store.channel_entry import ChannelEntry
from unlearn_serve.store.channels import Channels
from unlearn_serve.store.releases import Release, ReleaseInfo, Releases
from unlearn_serve.store.verify import Problem, verify_release, verify_store


class Store:
    """Where the trainer publishes and the server reads.

    Layout: releases/<sha256>/{adapter_config.json, adapter_model.safetensors, manifest.json} and
    channels/<name>/<generation, 20 digits>.json. Every method may raise `StoreUnavailable`. An instance keeps nothing
    between calls and may be shared by threads.
    """

    def __init__(self, backend: Backend) -> None:
        """Use the objects of `backend`; see `open`."""
        self._backend = backend
        self._releases = Releases(backend)
        self._channels = Channels(backend, self._releases)

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> Self:
        """The store at `url`: a path, a file:// URL, or s3://, gs://, az:// and their kin (credentials: environment).

        Args:
            url: where.
            create: make the folder if it is not there. A bucket must exist.

        Raises:
            StoreUnavailable: no such folder, an unknown kind of URL, a refused configuration.
        """
        return cls(Backend.open(url, create=create))

    @property
    def url(self) -> str:
        """What `open` was given."""
        return self._backend.name

    def publish(self, adapter_dir: Path) -> str:
        """Publish the adapter in `adapter_dir` as a release and return its digest.

        Checks everything first, then writes the adapter files and, last, the manifest that makes the release visible.
        Killed at any point it leaves nothing that a reader sees; doing it again completes it. Publishing what is
        there already changes nothing, except that files with wrong bytes are replaced by the right ones.

        Raises:
            ManifestError, AdapterFileError, DigestError: the directory breaks the format; nothing was written.
        """
        return self._releases.publish(adapter_dir)

    def copy_release(self, digest: str, source: "Store") -> None:
        """Copy a release from `source`, verified, under the same digest.

        Raises:
            ReleaseNotFound, DigestError, ManifestError, AdapterFileError: as `load_release` on `source`.
        """
        self._releases.copy(digest, source._releases)

    def load_manifest(self, digest: str) -> Manifest:
        """The manifest of a release, re-hashed; the adapter files are not read.

        Raises:
            ReleaseNotFound: no visible release of that digest.
            DigestError, ManifestError: the stored bytes are not those published.
        """
        return self._releases.load_manifest(digest)

    def load_release(self, digest: str) -> Release:
        """A release with its weights; every byte is checked against the digest, every weight is finite.

        Raises:
            ReleaseNotFound: no visible release of that digest.
            DigestError, ManifestError, AdapterFileError: the stored bytes are not those published, or not valid.
        """
        return self._releases.load(digest)

    def releases(self) -> list[ReleaseInfo]:
        """All visible releases, oldest first; a broken manifest is reported in its place."""
        return sorted(self._releases.all(), key=lambda info: (info.published_at, info.digest))

    def resolve(self, prefix: str) -> str:
        """The digest of the one visible release that starts with `prefix`, of 8 or more hexadecimal digits.

        Raises:
            ReleaseNotFound: none.
            StoreError: several.
        """
        return self._releases.resolve(prefix)

    def verify(self, digest: str | None = None) -> list[Problem]:
        """Read one release, or the whole store, and return all that is wrong; empty when it is sound.

        Raises:
            ReleaseNotFound: no visible release `digest`.
        """
        if digest is not None:
            return list(verify_release(self._releases, digest))
        return list(verify_store(self._backend, self._releases, self._channels))

    def promote(
        self, digest: str, channel: str, *, expected_generation: int | None = None, actor: str, reason: str = ""
    ) -> ChannelEntry:
        """Make release `digest` live on `channel`, as its next generation; the first one makes the channel.

        Args:
            digest: the release; it is loaded and verified first.
            channel: 1 to 64 of a-z 0-9 . _ - that start with a letter or digit.
            expected_generation: refuse unless this is the newest generation (0: the channel does not exist).
            actor: who does it; one line.
            reason: why; one line.

        Raises:
            ChannelConflict: somebody else moved the channel since `expected_generation`, or during this call.
            ReleaseNotFound, DigestError, ManifestError, AdapterFileError: as `load_release`; the channel did not move.
            FormatError: `actor` or `reason` is not one line of text.
        """
        return self._channels.promote(
            digest, channel, expected_generation=expected_generation, actor=actor, reason=reason
        )

    def rollback(
        self,
        channel: str,
        *,
        to_generation: int | None = None,
        expected_generation: int | None = None,
        actor: str,
        reason: str = "",
    ) -> ChannelEntry:
        """Make an earlier release live again, as the channel's next generation.

        A channel behaves like a stack: a promote lays a release on top, unless it is on top already; a rollback takes
        the top off and what is below is live again. Exactly: let p be the generation of the promote whose release is
        live. What was live under generation p - 1 is restored; if that is the same release, the same is asked of the
        promote behind it. So a second rollback walks back further, and no release that was rolled back returns: after
        promote A, promote B, the first rollback restores A, and the second fails, for nothing was live before A.

        With `to_generation`, the release that was live under that generation is restored.

        Raises:
            ChannelNotFound: no such channel.
            StoreError: nothing was live before, or no such generation.
            ChannelConflict, ReleaseNotFound, DigestError, ManifestError, AdapterFileError, FormatError: as `promote`.
        """
        return self._channels.rollback(
            channel,
            to_generation=to_generation,
            expected_generation=expected_generation,
            actor=actor,
            reason=reason,
        )

    def channel(self, name: str) -> ChannelEntry:
        """The newest generation of a channel: what is live. One listing and one read.

        Raises:
            ChannelNotFound: no such channel.
            FormatError: its entry is malformed.
        """
        return self._channels.current(name)

    def channel_after(self, name: str, generation: int) -> ChannelEntry | None:
        """The newest entry if it is later than `generation`, else None; for followers that poll.

        One listing, and a read only when there is news. With generation 0, None means that there is no such channel.

        Raises:
            StoreUnavailable: the store no longer holds `generation`, so it was emptied or restored from a backup.
            FormatError: the entry is malformed.
        """
        return self._channels.after(name, generation)

    def history(self, name: str) -> list[ChannelEntry]:
        """All generations of a channel, oldest first.

        Raises:
            ChannelNotFound: no such channel.
            FormatError: an entry is malformed.
        """
        return self._channels.history(name)

    def channels(self) -> list[str]:
        """The names of all channels, sorted."""
        return self._channels.names()
