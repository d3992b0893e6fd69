"""Everything that is wrong with a store, found by reading all of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from unlearn_serve.errors import FormatError, StoreError, TrustError
from unlearn_serve.format.adapter_file import MANIFEST_NAME
from unlearn_serve.format.manifest import FILE_NAMES
from unlearn_serve.store.audit import is_audit_path
from unlearn_serve.store.backend import Backend
from unlearn_serve.store.channel_entry import ChannelEntry, entry_path, generation_of, is_channel_name
from unlearn_serve.store.channels import Channels
from unlearn_serve.store.releases import Releases
from unlearn_serve.store.signatures import SIGNATURE_PATH, Signatures

_RELEASE_FILE = re.compile(rf"releases/[0-9a-f]{{64}}/(?:{'|'.join(map(re.escape, (*FILE_NAMES, MANIFEST_NAME)))})")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, and where."""

    where: str
    """Path in the store: of a release, a channel's entry, or an object that does not belong."""
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def verify_release(releases: Releases, signatures: Signatures, digest: str) -> Iterator[Problem]:
    """Load one release and check every byte, and every signature of it."""
    try:
        manifest = releases.load(digest).manifest
    except (FormatError, TrustError) as error:
        yield Problem(where=f"releases/{digest}", message=str(error))
        return
    yield from _verify_signatures(signatures, manifest.to_bytes())


def verify_store(backend: Backend, releases: Releases, channels: Channels, signatures: Signatures) -> Iterator[Problem]:
    """Check every release, every generation of every channel, every signature, and that nothing else lies in the store.

    With trusted keys, every release, and the newest generation of every channel, must be signed by one: what was live
    before may have been signed by keys that are retired.

    A release without a manifest is one that is being published, or whose publisher was killed: no problem.
    """
    listed = [info.digest for info in releases.all()]
    for digest in listed:
        yield from verify_release(releases, signatures, digest)
    for one in backend.objects("releases"):
        if _RELEASE_FILE.fullmatch(one.path) is None:
            yield Problem(where=one.path, message="expected only a release's three files here, got this object")
    for one in backend.objects("channels"):
        if generation_of(one.path) is None or not is_channel_name(one.path.split("/")[1]):
            yield Problem(where=one.path, message="expected only channels' generations here, got this object")
    for one in backend.objects("signatures"):
        if SIGNATURE_PATH.fullmatch(one.path) is None:
            yield Problem(where=one.path, message="expected only signatures here, got this object")
    for one in backend.objects("audit"):
        if not is_audit_path(one.path):
            yield Problem(where=one.path, message="expected only audit records here, got this object")
    for name in channels.names():
        yield from _verify_channel(channels, signatures, name, listed)


def _verify_channel(channels: Channels, signatures: Signatures, name: str, listed: list[str]) -> Iterator[Problem]:
    entries: dict[int, ChannelEntry] = {}
    newest = channels.newest(name)
    for generation in range(1, newest + 1):
        where = entry_path(name, generation)
        try:
            entry = (channels.read_trusted if generation == newest else channels.read)(name, generation)
        except (FormatError, StoreError, TrustError) as error:
            yield Problem(where=where, message=str(error))
            continue
        entries[generation] = entry
        yield from _verify_signatures(signatures, entry.to_bytes())
        earlier = {one.digest for one in entries.values() if one.generation < generation}
        if generation - 1 in entries and entry.previous not in earlier:
            yield Problem(where=where, message=f"follows entry {entry.previous}, which is not here: it was changed")
        if entry.release not in listed:
            yield Problem(where=where, message=f"names release {entry.release}, which the store does not hold")
        if entry.restores_generation is not None:
            restored = entries.get(entry.restores_generation)
            if restored is not None and (restored.action, restored.release) != ("promote", entry.release):
                yield Problem(
                    where=where,
                    message=f"restores generation {restored.generation}, which did not promote this release",
                )


def _verify_signatures(signatures: Signatures, document: bytes) -> Iterator[Problem]:
    for where, message in signatures.problems(document):
        yield Problem(where=where, message=message)
