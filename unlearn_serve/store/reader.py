"""`StoreReader`: what servers and auditors need of a store. Never writes."""

from collections.abc import Collection
from typing import Self

from unlearn_serve.format.chain import Fault
from unlearn_serve.format.manifest import Manifest
from unlearn_serve.store.audit import StoreAudit
from unlearn_serve.store.audit_check import audit_faults
from unlearn_serve.store.backend import Backend
from unlearn_serve.store.channel_entry import ChannelEntry
from unlearn_serve.store.channels import Channels
from unlearn_serve.store.coverage import require_declared
from unlearn_serve.store.releases import Release, ReleaseInfo, Releases
from unlearn_serve.store.signatures import Signatures
from unlearn_serve.store.verify import Problem, verify_release, verify_store


class StoreReader:
    """The reading half of `Store`.

    Layout: releases/<sha256>/{adapter_config.json, adapter_model.safetensors, manifest.json}, and numbered by 20 digits
    channels/<name>/<generation>.json and audit/<seq>.json; signatures/<sha256 of a document>/<public key>.json. Every
    method may raise `StoreUnavailable`. An instance keeps nothing between calls and may be shared by threads.
    """

    def __init__(self, backend: Backend, *, trusted_keys: Collection[str] = ()) -> None:
        """Use the objects of `backend`; see `open`."""
        self._backend = backend
        self._signatures = Signatures(backend, trusted_keys)
        self._audit = StoreAudit(backend, self._signatures)
        self._releases = Releases(backend, self._signatures, self._audit)
        self._channels = Channels(backend, self._signatures)

    @classmethod
    def open(cls, url: str, *, create: bool = False, trusted_keys: Collection[str] = ()) -> Self:
        """The store at `url`: a path, a file:// URL, or s3://, gs://, az:// and their kin (credentials: environment).

        Args:
            url: where.
            create: make the folder if it is not there. A bucket must exist.
            trusted_keys: Ed25519 public keys, 64 hexadecimal digits each. With some, a release loads, and `admit` lets
                an entry pass, only where one of them signed it; `Unsigned` or `BadSignature` is raised elsewhere.

        Raises:
            StoreUnavailable: no such folder, an unknown kind of URL, a refused configuration.
        """
        return cls(Backend.open(url, create=create), trusted_keys=trusted_keys)

    @property
    def url(self) -> str:
        """What `open` was given."""
        return self._backend.name

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
            return list(verify_release(self._releases, self._signatures, digest))
        return list(verify_store(self._backend, self._releases, self._channels, self._signatures))

    def admit(
        self, entry: ChannelEntry, *, applied: ChannelEntry | None = None, covered: Collection[str] = ()
    ) -> Manifest:
        """What a server asks before it applies `entry`; the manifest of its release, if all is well.

        Args:
            entry: the entry, as `channel` or `channel_after` gave it.
            applied: what the server applied last, None for nothing.
            covered: the deletion requests covered by what it applied last.

        Raises:
            Unsigned, BadSignature: this store has trusted keys, and none signed the entry, or its release.
            HistoryBroken: this store has trusted keys, and the entry does not descend from `applied`.
            DropsDeletions: one of `covered` is covered no longer, and no entry since `applied` allows that.
            ReleaseNotFound, DigestError, ManifestError: as `load_manifest`.
        """
        self._channels.require_trusted(entry)
        manifest = self._releases.load_manifest(entry.release)
        require_declared(self._channels, entry, manifest, applied=applied, covered=covered)
        return manifest

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
            DowngradeRefused: the store no longer holds `generation`, so it was emptied or restored from a backup.
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

    def audit_records(self) -> list[tuple[str, bytes]]:
        """Path and bytes of each record of the store's log, in order, sound or not; see `audit_faults`."""
        return self._audit.records()

    def audit_faults(self) -> list[Fault]:
        """All that is wrong with the store's log: with its chain, or between it and what is in the store.

        With trusted keys, one of them must have signed the newest record, which vouches for all before it.
        """
        return list(audit_faults(self._audit, self._releases, self._channels, self._signatures))

    def signers(self, document: bytes) -> tuple[str, ...]:
        """The public keys that signed `document`, trusted or not."""
        return self._signatures.signers(document)

    def channels(self) -> list[str]:
        """The names of all channels, sorted."""
        return self._channels.names()
