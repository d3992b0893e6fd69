"""An event loop that never waits: where all tasks sleep it moves its clock, and its threads run at once."""

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class _AtOnce(ThreadPoolExecutor):
    """Runs what it is given in the caller's thread, so that the order of all steps is the same in every run."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **options))
        except BaseException as error:  # a death too: whoever waits for the result dies of it
            future.set_exception(error)
        return future


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time()` is `now`, seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        super().__init__(_NeverWaits(self))
        self.set_default_executor(_AtOnce(1))
        self.set_exception_handler(lambda *_: None)  # what a killed process leaves undone is not worth a line

    def time(self) -> float:
        return self.now


class _NeverWaits(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            if timeout is None:
                raise AssertionError("every task waits for something that never comes")
            self._loop.now += max(timeout, 0.0)
        return found
