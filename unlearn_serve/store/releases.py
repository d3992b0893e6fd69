"""Releases: immutable, named by the SHA-256 of their manifest, visible from the moment the manifest is there."""

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from unlearn_serve.errors import DigestError, FormatError, ReleaseNotFound, StoreError, TrustError
from unlearn_serve.format.adapter_file import (
    MANIFEST_NAME,
    AdapterFiles,
    AdapterTensors,
    read_adapter,
    read_adapter_files,
)
from unlearn_serve.format.fields import require_sha256
from unlearn_serve.format.keys import SigningKey
from unlearn_serve.format.manifest import FILE_NAMES, MAX_MANIFEST_BYTES, FileName, Manifest
from unlearn_serve.format.strict_json import shown
from unlearn_serve.store.audit import StoreAudit
from unlearn_serve.store.backend import Backend
from unlearn_serve.store.signatures import Signatures

logger = logging.getLogger(__name__)

_MANIFEST_PATH = re.compile(r"releases/([0-9a-f]{64})/manifest\.json")


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release, verified down to the last weight."""

    digest: str
    manifest: Manifest
    tensors: AdapterTensors


@dataclass(frozen=True, kw_only=True)
class ReleaseInfo:
    """A release as a listing shows it: its manifest, or what is wrong with it."""

    digest: str
    published_at: datetime
    manifest: Manifest | None
    problem: str | None


class Releases:
    """The part of a store under releases/."""

    def __init__(self, backend: Backend, signatures: Signatures, audit: StoreAudit) -> None:
        """Use the objects of `backend`; what is loaded must pass `signatures`, what is published enters `audit`."""
        self._backend = backend
        self._signatures = signatures
        self._audit = audit

    def publish(self, adapter_dir: Path, *, actor: str, signer: SigningKey | None) -> str:
        """See `Store.publish`."""
        adapter = read_adapter_files(adapter_dir)
        manifest, digest = adapter.manifest.to_bytes(), adapter.manifest.digest
        self._write_files(adapter)
        if signer is not None:  # first, so that a release is never visible without it
            self._signatures.add(manifest, signer)
        if not self._is_visible(digest, len(manifest)):
            self._audit.append(
                signer=signer,
                actor=actor,
                event="publish",
                document=digest,
                release=digest,
                deletion_ids=adapter.manifest.deletion_ids,
            )
        self._put(_path(digest, MANIFEST_NAME), manifest)  # last: it makes the release visible
        return digest

    def copy(self, digest: str, source: "Releases") -> None:
        """See `Store.copy_release`."""
        adapter = source.read(digest)
        self._signatures.copy(adapter.manifest.to_bytes(), source._signatures)
        self._write_files(adapter)
        self._put(_path(digest, MANIFEST_NAME), adapter.manifest.to_bytes())

    def load_manifest(self, digest: str) -> Manifest:
        """See `Store.load_manifest`."""
        require_sha256(digest, what="release", error=ReleaseNotFound)
        path = _path(digest, MANIFEST_NAME)
        data = self._backend.read(path, limit=MAX_MANIFEST_BYTES)
        if data is None:
            raise ReleaseNotFound(f"store {self._backend.name!r} holds no release {digest}; list shows those it holds")
        if (found := hashlib.sha256(data).hexdigest()) != digest:
            raise DigestError(f"{path}: expected bytes with the release's sha256, got {found}; publish it again")
        self._signatures.require(data, what=f"release {digest}")
        return Manifest.from_bytes(data, source=path)

    def load(self, digest: str) -> Release:
        """See `Store.load_release`."""
        found = self.read(digest)
        return Release(digest=digest, manifest=found.manifest, tensors=found.tensors)

    def read(self, digest: str) -> AdapterFiles:
        """As `load`, with the bytes of the files."""
        manifest = self.load_manifest(digest)
        files = {name: self._read_file(digest, name, manifest.files[name].size) for name in FILE_NAMES}
        try:
            tensors = read_adapter(
                manifest, config=files["adapter_config.json"], tensors=files["adapter_model.safetensors"]
            )
        except FormatError as problem:
            raise type(problem)(f"release {digest}: {problem}") from None
        return AdapterFiles(manifest=manifest, files=files, tensors=tensors)

    def all(self) -> Iterator[ReleaseInfo]:
        """See `Store.releases`."""
        for found in self._backend.objects("releases"):
            if match := _MANIFEST_PATH.fullmatch(found.path):
                manifest, problem = None, None
                try:
                    manifest = self.load_manifest(match[1])
                except (FormatError, TrustError) as error:
                    problem = str(error)
                yield ReleaseInfo(digest=match[1], published_at=found.modified, manifest=manifest, problem=problem)

    def resolve(self, prefix: str) -> str:
        """See `Store.resolve`."""
        if re.fullmatch(r"[0-9a-f]{8,64}", prefix) is None:
            raise ReleaseNotFound(f"release: expected 8 to 64 lower-case hexadecimal digits, got {shown(prefix)}")
        matches = [_MANIFEST_PATH.fullmatch(found.path) for found in self._backend.objects("releases")]
        digests = [match[1] for match in matches if match and match[1].startswith(prefix)]
        if not digests:
            raise ReleaseNotFound(f"store {self._backend.name!r} holds no release {prefix}; list shows those it holds")
        if len(digests) > 1:
            raise StoreError(f"release {prefix} is ambiguous: {', '.join(digests)}; give more digits")
        return digests[0]

    def _read_file(self, digest: str, name: FileName, size: int) -> bytes:
        path = _path(digest, name)
        data = self._backend.read(path, limit=size)
        if data is None:
            raise DigestError(f"{path}: expected a file of {size} bytes, got none; publish the release again")
        return data

    def _is_visible(self, digest: str, size: int) -> bool:
        try:
            return self._backend.read(_path(digest, MANIFEST_NAME), limit=size) is not None
        except DigestError:
            return True  # damaged; it was there, so it is in the log

    def _write_files(self, adapter: AdapterFiles) -> None:
        for name in FILE_NAMES:
            self._put(_path(adapter.manifest.digest, name), adapter.files[name])

    def _put(self, path: str, data: bytes) -> None:
        """Put-if-absent; an object that is there already is compared, and replaced where its bytes are wrong."""
        if self._backend.create(path, data):
            return
        try:
            existing = self._backend.read(path, limit=len(data))
        except DigestError:
            existing = None
        if existing != data:
            logger.warning("%s held other bytes than its name says; replaced by the right ones", path)
            self._backend.replace(path, data)


def _path(digest: str, name: str) -> str:
    return f"releases/{digest}/{name}"
