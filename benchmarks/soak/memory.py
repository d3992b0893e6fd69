"""The resident memory of a server's processes over time, and whether it grows."""

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

import psutil  # type: ignore[import-untyped]  # ships no types
from scipy import stats

from benchmarks.processes import Measured

SAMPLE_SECONDS = 2.0
WARM_UP_SHARE = 1 / 3
MOST_WARM_UP_SECONDS = 300.0
"""Until then caches fill: the first releases staged, every shape of a batch seen once, the allocators' arenas."""


class Sample(NamedTuple):
    """Resident memory at one moment."""

    at: float
    """Unix seconds."""
    mib: float
    """Sum over the processes; pages that they share count once for each."""


class MemoryWatch:
    """Samples a server's resident memory while the block runs."""

    def __init__(self, server: Measured) -> None:
        self.samples: list[Sample] = []
        self._server = server
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(SAMPLE_SECONDS):
            self.samples.append(Sample(time.time(), resident_mib(self._server)))


def resident_mib(server: Measured) -> float:
    """Return the sum of the resident memory of a server's processes, in MiB."""
    total = 0
    for process in server.group():
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def after_warm_up(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples after the first third, which is at most five minutes."""
    if not samples:
        return []
    first, last = samples[0].at, samples[-1].at
    begin = first + min(WARM_UP_SHARE * (last - first), MOST_WARM_UP_SECONDS)
    return [sample for sample in samples if sample.at >= begin]


def growth(samples: Sequence[Sample]) -> float | None:
    """Return how much memory grew after the warm-up, as a share of what it was then; None of fewer than three samples.

    By the Theil-Sen line (the median of the slopes between any two samples), which single high samples do not move.
    """
    settled = after_warm_up(samples)
    if len(settled) < 3:
        return None
    seconds = [sample.at - settled[0].at for sample in settled]
    line = stats.theilslopes([sample.mib for sample in settled], seconds)
    return float(line.slope * seconds[-1] / line.intercept)
