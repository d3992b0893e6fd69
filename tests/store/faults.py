"""A backend whose writer dies at a chosen put: the store below it is real, only the death is staged."""

import os
import signal
from typing import Literal

from obstore.store import LocalStore, MemoryStore

from unlearn_serve.store import Backend

Death = Literal["before", "after", "torn"]
"""When the writer dies: before the put, right after it, or half way through on a store whose puts are not atomic."""


class Killed(BaseException):
    """The writer's death; no handler for errors may catch it."""


class DyingBackend(Backend):
    """Dies at the put number `at`, counted from 0; with `signal_self` by a real SIGKILL."""

    def __init__(
        self, store: LocalStore | MemoryStore, *, at: int, death: Death = "before", signal_self: bool = False
    ) -> None:
        super().__init__(store, name="dying")
        self.puts = 0
        self._at, self._death, self._signal_self = at, death, signal_self

    def create(self, path: str, data: bytes) -> bool:
        if not self._dies_now():
            return super().create(path, data)
        if self._death == "torn":
            super().create(path, data[: len(data) // 2])
        elif self._death == "after":
            super().create(path, data)
        self._die()
        raise AssertionError("unreachable")

    def replace(self, path: str, data: bytes) -> None:
        if not self._dies_now():
            super().replace(path, data)
            return
        if self._death != "before":
            super().replace(path, data[: len(data) // 2] if self._death == "torn" else data)
        self._die()

    def _dies_now(self) -> bool:
        self.puts += 1
        return self.puts - 1 == self._at

    def _die(self) -> None:
        if self._signal_self:
            os.kill(os.getpid(), signal.SIGKILL)
        raise Killed
