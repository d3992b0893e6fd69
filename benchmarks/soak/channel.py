"""The channel as the soak moves it: releases and rollbacks in turn, each waited for until it is live."""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx

from benchmarks.processes import BenchmarkError
from benchmarks.servers import Server
from benchmarks.soak.publisher import ACTOR, Publisher
from benchmarks.soak.setting import CHANNEL, Setting
from unlearn_serve.store import Backend, ChannelEntry
from unlearn_serve.store.channel_entry import entry_path

LIVE_SECONDS = 60.0
LOOK_SECONDS = 0.1

Found = TypeVar("Found")


class Channel:
    """Server, store and publisher of one soak, and where the channel stands."""

    def __init__(self, setting: Setting, server: Server, publisher: Publisher, *, seed: int = 0) -> None:
        self.setting = setting
        self.server = server
        self.publisher = publisher
        self.chance = random.Random(seed)
        self.first, *self._others = setting.releases
        self._turn = seed

    def status(self) -> dict[str, Any]:
        """The server's own word; a server too busy to answer at once is asked again."""
        for _ in range(3):
            try:
                return self.server.admin("status")
            except httpx.TransportError:
                self.server.require_alive()
        return self.server.admin("status")

    def move(self) -> None:
        """Promote another release where the first is live, else roll back; wait until that is live."""
        if self.status()["live"]["release"] == self.first:
            self.promote(self.next_release())
        else:
            self.wait_live(self.publisher.rollback())

    def next_release(self) -> str:
        """The releases other than the first, in turn."""
        self._turn += 1
        return self._others[self._turn % len(self._others)]

    def promote(self, release: str, *, allow_uncover: bool = False) -> None:
        """Promote a release and wait until it is live."""
        self.wait_live(self.publisher.promote(release, allow_uncover=allow_uncover))

    def settle(self) -> None:
        """Promote one release and then the first, so that nothing the next rollback needs lies before a fault."""
        self.promote(self.next_release(), allow_uncover=True)
        self.promote(self.first)

    def wait_live(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Wait until the server says that an entry is live; returns its status. Whether it is, the tokens tell."""

        def live() -> dict[str, Any] | None:
            status = self.status()
            there = (status["live"]["generation"], status["live"]["release"])
            return status if there == (entry["generation"], entry["release"]) else None

        return self.wait_until(live, f"generation {entry['generation']} is live")

    def wait_until(self, look: Callable[[], Found | None], what: str, *, seconds: float = LIVE_SECONDS) -> Found:
        """Return the first true result of `look`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(LOOK_SECONDS)
        raise BenchmarkError(f"waited {seconds:.0f} s in vain: {what}; see {self.server.log}")

    def next_entry(self, release: str) -> ChannelEntry:
        """Return the entry that would promote `release` next."""
        newest = self.setting.inputs.store.channel(CHANNEL)
        return ChannelEntry(
            channel=CHANNEL,
            generation=newest.generation + 1,
            release=release,
            action="promote",
            restores_generation=None,
            at=datetime.now(UTC),
            actor=ACTOR,
            reason="",
            previous=newest.digest,
        )

    def write_entry(self, entry: ChannelEntry, data: bytes | None = None) -> None:
        """Write an entry, or `data` in its place, as a publisher would that verifies nothing."""
        backend = Backend.open(str(self.setting.store_folder))
        if not backend.create(entry_path(CHANNEL, entry.generation), entry.to_bytes() if data is None else data):
            raise BenchmarkError(f"somebody else moved the channel to generation {entry.generation}")

    def pause(self, low: float, high: float) -> None:
        """Wait, never in step with the clients."""
        time.sleep(self.chance.uniform(low, high))
