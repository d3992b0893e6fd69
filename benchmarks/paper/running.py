"""Runs what is outstanding: as many stages side by side as there are jobs, each in a process with its own threads.

Two stages with a thread each are sooner done than one after the other with two, and then every time in the results was
taken under the same conditions.
"""

import logging
import multiprocessing
import os
import threading
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils.logging import disable_progress_bar

from benchmarks.paper.plan import plan
from benchmarks.paper.sizes import FULL, QUICK
from benchmarks.paper.stages import Runner
from unlearn_serve.bf16 import fast_bf16

CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Where:
    """What a process needs to know to run any stage."""

    quick: bool
    data: Path
    out: Path
    results: Path

    jobs: int
    """Stages side by side; the cores are shared out between them."""

    def runner(self) -> Runner:
        """The stages of this size, in these folders."""
        return Runner(
            plan(QUICK if self.quick else FULL), data=self.data, out=self.out, results=self.results, jobs=self.jobs
        )


class Schedule:
    """Which stage may begin: the first whose inputs are done; a stage that is to be alone waits for all others."""

    def __init__(self, runner: Runner, names: Sequence[str]) -> None:
        """Keep the stages to run, in their order."""
        self._stages = runner.stages
        self._waiting = list(names)
        self._running: set[str] = set()
        self.failed: list[str] = []
        """Those that failed, and those that would have read them."""

    @property
    def left(self) -> list[str]:
        """What is not done yet."""
        return [*self._running, *self._waiting]

    def next(self) -> str | None:
        """Take the stage that begins now; None: none may before another one ends."""
        if any(self._stages[one].alone for one in self._running):
            return None
        pending = {*self._running, *self._waiting}
        for name in self._waiting:
            stage = self._stages[name]
            if pending.isdisjoint(stage.inputs):
                if stage.alone and self._running:
                    return None
                self._waiting.remove(name)
                self._running.add(name)
                return name
        return None

    def ended(self, name: str, *, failed: bool = False) -> None:
        """Note the end of a stage; one that failed takes those that read it with it, and no others."""
        self._running.remove(name)
        if failed:
            self.failed.append(name)
            for one in tuple(self._waiting):
                if not set(self.failed).isdisjoint(self._stages[one].inputs):
                    self._waiting.remove(one)
                    self.failed.append(one)


def run_outstanding(where: Where, names: Sequence[str]) -> list[str]:
    """Run the stages of `names` that are not done, and what they need.

    Args:
        where: size, folders, and how many side by side.
        names: of stages.

    Returns:
        Names of stages that failed, or whose inputs did; their tracebacks go to the console.
    """
    runner = where.runner()
    outstanding = runner.outstanding(names)
    expected = {name: runner.seconds(name) for name in outstanding}
    schedule = Schedule(runner, outstanding)
    pool = ProcessPoolExecutor(where.jobs, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(where,))
    running: dict[Future[float], str] = {}
    with pool, _progress() as progress:
        task = progress.add_task("", total=len(outstanding), left="")
        spent = planned = 0.0
        while schedule.left:
            while len(running) < where.jobs and (begins := schedule.next()) is not None:
                running[pool.submit(_run, begins)] = begins
            # What is to come, at the pace of what has been against what was expected of it.
            pace = spent / planned if planned else 1.0
            left = pace * sum(expected[one] for one in schedule.left) / where.jobs
            progress.update(
                task,
                description=", ".join(running.values()),
                completed=len(outstanding) - len(schedule.left),
                left=f"about {clock(left)} left",
            )
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, problem = running.pop(future), future.exception()
                if problem is None:
                    spent, planned = spent + future.result(), planned + expected[name]
                    progress.console.print(f"{name:<44} {clock(future.result())}")
                else:
                    progress.console.print(f"{name}: {problem}")
                schedule.ended(name, failed=problem is not None)
        progress.update(task, description="", completed=len(outstanding), left="")
    return schedule.failed


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<44}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=Console(stderr=True, highlight=False, soft_wrap=True),
    )


_runner: Runner


def _begin(where: Where) -> None:
    """Once in each process. Progress is the caller's; the warning that a target was missed is in the results."""
    global _runner
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, CORES // where.jobs))
    disable_progress_bar()
    get_console().quiet = True
    logging.getLogger("unlearn_serve").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning)
    _runner = where.runner()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(name: str) -> float:
    try:
        with fast_bf16():
            return float(_runner.run(name)["seconds"])
    except Exception as problem:  # whatever it was, as text: not every exception can be sent to another process
        raise RuntimeError("".join(traceback.format_exception(problem))) from None
