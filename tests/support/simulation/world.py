"""All that outlives a server's process, and what its clients may hold against it."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from obstore.store import MemoryStore

from support.simulation.faults import Fault
from unlearn_serve.errors import FormatError
from unlearn_serve.format.manifest import BaseModelRef
from unlearn_serve.store import Backend, ChannelEntry, Store

if TYPE_CHECKING:
    from support.simulation.process import Process

CHANNEL = "production"
PLAIN = "plain"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is known beforehand: a base model, and what one token of each release looks like, by digest, or `plain`."""

    model: str
    base: BaseModelRef
    outputs: dict[str, torch.Tensor]


@dataclass(kw_only=True)
class World:
    """The store, the server's disk, its faults to come, and every token that was served."""

    truth: Truth
    objects: MemoryStore
    state: Path
    settings: dict[str, Any]
    seen: Counter[str]
    """How often what happened, so that a test can tell that it did."""
    planned: list[Fault] = field(default_factory=list)
    store_away: bool = False
    disk_full: bool = False
    seconds_off: float = 0.0
    """How far the wall clock jumped."""
    said: set[str] = field(default_factory=set)
    """Digests of all entries that the channel ever had."""
    violations: list[str] = field(default_factory=list)
    newest_served: int = 0
    """The newest generation that a token was served under."""
    kv_of: set[str] = field(default_factory=set)
    """The releases under which KV was computed that is still in use."""
    process: "Process | None" = None

    def token(self, outputs: Sequence[torch.Tensor]) -> None:
        """Hold one token, as every worker computed it, against what a client may expect."""
        assert self.process is not None
        live = self.process.follower.live
        releases = {self._release_of(output) for output in outputs}
        release = min(releases)
        self.kv_of |= releases
        self.seen["token"] += 1
        if len(releases) > 1:
            self._object(f"the workers disagree: {sorted(releases)}")
        elif self.kv_of != releases:
            self._object(f"KV of {sorted(self.kv_of)} used under {release}")
        elif release != live.release:
            self._object(f"served {release}, named {live.release}")
        elif live.generation < self.newest_served:
            self._object(f"generation {live.generation} of {release}, after {self.newest_served} was live")
        elif live.entry is not None and not self._was_said(live.entry):
            self._object(f"an entry that the channel never had: {live.entry}")
        self.newest_served = max(self.newest_served, live.generation)

    def publisher(self) -> Store:
        """The store as others reach it; what they do is no step of the server's."""
        return Store(Backend(self.objects, name="memory"), trusted_keys=self.settings["trusted_keys"])

    def note_channel(self) -> None:
        """Learn what the channel says now."""
        for path, data in self.read_objects(f"channels/{CHANNEL}").items():
            with suppress(FormatError):
                self.said.add(ChannelEntry.from_bytes(data, source=path).digest)

    def read_objects(self, prefix: str = "") -> dict[str, bytes]:
        """What is in the store, by path."""
        paths = sorted(one["path"] for one in self.objects.list(prefix or None).collect())
        return {path: self.objects.get(path).bytes().to_bytes() for path in paths}

    def files(self) -> list[Path]:
        """What is kept on the server's disk, less what is empty."""
        kept = [*self.state.rglob("last_applied.json"), *self.state.rglob("releases/*/*/*")]
        return sorted(path for path in kept if path.stat().st_size)

    def kept_entry_is_sound(self) -> bool:
        """Whether the file that names what was applied last, if there is one, is a whole entry that the channel had."""
        found = self.state.rglob("last_applied.json")
        return all(hashlib.sha256(path.read_bytes()).hexdigest() in self.said for path in found)

    def _was_said(self, entry: ChannelEntry) -> bool:
        if entry.digest not in self.said:
            self.note_channel()
        return entry.digest in self.said

    def _release_of(self, output: torch.Tensor) -> str:
        for release, expected in self.truth.outputs.items():
            if torch.allclose(output, expected, atol=1e-5):
                return release
        return "a mixture"

    def _object(self, violation: str) -> None:
        self.violations.append(violation)
