"""What can go wrong, and when: every step of a simulated server passes through `Faults.step`."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from obstore.store import MemoryStore
from store.faults import Killed

from unlearn_serve.errors import StoreUnavailable
from unlearn_serve.store import Backend
from unlearn_serve.store.backend import ObjectInfo

Kind = Literal["store", "engine", "worker", "disk"]
"""A request to the store; either side of a call to the engine; either side of a call in a worker; a sync or rename."""

_STAGING_THREAD = "unlearn-stage"


class EngineFault(RuntimeError):
    """What the engine, or a worker, raises."""


@dataclass
class Fault:
    """Happens at the step of this kind that comes after `after` others."""

    kind: Kind
    after: int
    happen: Callable[[], None]


@dataclass
class Faults:
    """One process's fate. Dead, it takes no further step: what its clean-up code tries fails too."""

    planned: list[Fault]
    store_away: Callable[[], bool]
    dead: bool = False
    died_at: Kind | None = None
    """The kind of step that it was killed at."""
    _held: dict[threading.Thread, threading.Event] = field(default_factory=dict)

    def step(self, kind: Kind) -> None:
        """Take one step, unless a fault comes in its way."""
        self._live_or_die()
        for fault in [fault for fault in self.planned if fault.kind == kind]:
            fault.after -= 1
            if fault.after < 0:
                self.planned.remove(fault)
                fault.happen()
        if self.dead:
            self.died_at = self.died_at or kind
        self._live_or_die()
        if kind == "store" and self.store_away():
            raise StoreUnavailable("no route to host")

    def kill(self) -> None:
        """What kill -9 does: nothing more happens in this process."""
        self.dead = True

    def hold(self) -> None:
        """Let the thread in which a worker stages hang until `let_go`; the event loop's own thread goes on."""
        if threading.current_thread().name == _STAGING_THREAD:
            gate = threading.Event()
            self._held[threading.current_thread()] = gate
            gate.wait()

    def holds(self, thread: threading.Thread) -> bool:
        """Whether `thread` hangs."""
        return thread in self._held

    def let_go(self) -> None:
        """Let what hangs go on."""
        while self._held:
            self._held.popitem()[1].set()

    def _live_or_die(self) -> None:
        if self.dead:
            if threading.current_thread().name == _STAGING_THREAD:
                raise StoreUnavailable("this process was killed")  # ends the thread without a word
            raise Killed


class ServersBackend(Backend):
    """The store as the server's processes reach it."""

    def __init__(self, objects: MemoryStore, faults: Faults, *, name: str) -> None:
        super().__init__(objects, name=name)
        self._faults = faults

    def read(self, path: str, *, limit: int) -> bytes | None:
        self._faults.step("store")
        return super().read(path, limit=limit)

    def create(self, path: str, data: bytes) -> bool:
        self._faults.step("store")
        return super().create(path, data)

    def objects(self, prefix: str, *, after: str | None = None) -> list[ObjectInfo]:
        self._faults.step("store")
        return super().objects(prefix, after=after)
