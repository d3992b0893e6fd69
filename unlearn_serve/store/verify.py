"""Everything that is wrong with a store, found by reading all of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from unlearn_serve.errors import FormatError, StoreError
from unlearn_serve.format.adapter_file import MANIFEST_NAME
from unlearn_serve.format.manifest import FILE_NAMES
from unlearn_serve.store.backend import Backend
from unlearn_serve.store.channel_entry import ChannelEntry, entry_path, generation_of, is_channel_name
from unlearn_serve.store.channels import Channels
from unlearn_serve.store.releases import Releases

_RELEASE_FILE = re.compile(rf"releases/[0-9a-f]{{64}}/(?:{'|'.join(map(re.escape, (*FILE_NAMES, MANIFEST_NAME)))})")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, and where."""

    where: str
    """Path in the store: of a release, a channel's entry, or an object that does not belong."""
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def verify_release(releases: Releases, digest: str) -> Iterator[Problem]:
    """Load one release and check every byte."""
    try:
        releases.load(digest)
    except FormatError as error:
        yield Problem(where=f"releases/{digest}", message=str(error))


def verify_store(backend: Backend, releases: Releases, channels: Channels) -> Iterator[Problem]:
    """Check every release, every generation of every channel, and that nothing else lies in the store.

    A release without a manifest is one that is being published, or whose publisher was killed: no problem.
    """
    listed = [info.digest for info in releases.all()]
    for digest in listed:
        yield from verify_release(releases, digest)
    for one in backend.objects("releases"):
        if _RELEASE_FILE.fullmatch(one.path) is None:
            yield Problem(where=one.path, message="expected only a release's three files here, got this object")
    for one in backend.objects("channels"):
        if generation_of(one.path) is None or not is_channel_name(one.path.split("/")[1]):
            yield Problem(where=one.path, message="expected only channels' generations here, got this object")
    for name in channels.names():
        yield from _verify_channel(channels, name, listed)


def _verify_channel(channels: Channels, name: str, listed: list[str]) -> Iterator[Problem]:
    entries: dict[int, ChannelEntry] = {}
    for generation in range(1, channels.newest(name) + 1):
        where = entry_path(name, generation)
        try:
            entry = channels.read(name, generation)
        except (FormatError, StoreError) as error:
            yield Problem(where=where, message=str(error))
            continue
        entries[generation] = entry
        if entry.release not in listed:
            yield Problem(where=where, message=f"names release {entry.release}, which the store does not hold")
        if entry.restores_generation is not None:
            restored = entries.get(entry.restores_generation)
            if restored is not None and (restored.action, restored.release) != ("promote", entry.release):
                yield Problem(
                    where=where,
                    message=f"restores generation {restored.generation}, which did not promote this release",
                )
