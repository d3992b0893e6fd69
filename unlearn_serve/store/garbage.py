"""What nothing in a store needs any more: releases that no channel ever named, and what killed writers left."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from unlearn_serve.errors import FormatError, ReleaseNotFound, StoreError, TrustError
from unlearn_serve.format.adapter_file import MANIFEST_NAME
from unlearn_serve.store.audit import StoreAudit
from unlearn_serve.store.backend import Backend
from unlearn_serve.store.channel_entry import ChannelEntry
from unlearn_serve.store.channels import Channels
from unlearn_serve.store.releases import Releases
from unlearn_serve.store.signatures import SIGNATURE_PATH

_RELEASE_OBJECT = re.compile(r"releases/([0-9a-f]{64})/([^/]+)")


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """One object that may go, and why."""

    path: str
    size: int
    why: str
    release: str | None = None
    """The release that ceases to be visible with it, if one does."""


def find_garbage(
    backend: Backend, releases: Releases, channels: Channels, audit: StoreAudit, *, min_age: timedelta
) -> list[Garbage]:
    """See `Store.garbage`; a release's manifest comes before its files, so that it vanishes as a whole."""
    before = datetime.now(UTC) - min_age
    entries = {entry.digest: entry.release for name in channels.names() for entry in _history(channels, name)}
    kept = _with_parents(releases, set(entries.values()))
    found: list[Garbage] = []
    of_release: dict[str, list[Garbage]] = {}
    for one in backend.objects("releases"):
        match = _RELEASE_OBJECT.fullmatch(one.path)
        if match is None or match[1] in kept:
            continue
        if one.modified > before:
            kept.add(match[1])  # a young object keeps the whole release: it may be in the middle of being published
            continue
        why = "a release that no channel has named"
        gone = match[1] if match[2] == MANIFEST_NAME else None
        of_release.setdefault(match[1], []).append(Garbage(path=one.path, size=one.size, why=why, release=gone))
    for digest, objects in of_release.items():
        if digest not in kept:
            found += sorted(objects, key=lambda item: (not item.path.endswith(f"/{MANIFEST_NAME}"), item.path))
    records = {hashlib.sha256(data).hexdigest() for _, data in audit.records()}
    for one in backend.objects("signatures"):
        match = SIGNATURE_PATH.fullmatch(one.path)
        if (
            match
            and match[1] not in kept
            and match[1] not in entries
            and match[1] not in records
            and one.modified <= before
        ):
            found.append(Garbage(path=one.path, size=one.size, why="a signature of nothing that is kept"))
    return found


def _history(channels: Channels, name: str) -> list[ChannelEntry]:
    try:
        return [channels.read(name, generation) for generation in range(1, channels.newest(name) + 1)]
    except FormatError as error:
        raise StoreError(f"{error}; what it names is unknown, so nothing can be called garbage: repair it") from error


def _with_parents(releases: Releases, roots: set[str]) -> set[str]:
    """The releases named by channels and those they were fused from, as far as the store holds them."""
    kept, todo = set[str](), sorted(roots)
    while todo:
        digest = todo.pop()
        if digest in kept:
            continue
        kept.add(digest)
        try:
            todo += releases.load_manifest(digest).parents
        except ReleaseNotFound:
            continue
        except (FormatError, TrustError) as error:
            raise StoreError(f"{error}; what it was fused from is unknown, so nothing can be called garbage") from error
    return kept
