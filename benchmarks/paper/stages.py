"""Stages: pure functions of their settings and inputs, each with one result file; done once, they are skipped.

A stage's digest covers its name, version and settings, the digests of the stages it reads and the SHA-256 of its data
files. Its result is `RESULTS/NAME.json`, which carries the digest; the files that it leaves for other stages lie under
`OUT/NAME-DIGEST`. Both appear whole or not at all, so a run that was stopped goes on with the stage it was in.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from benchmarks.machine import describe
from unlearn_serve.format.atomic import write_atomically

State = Literal["done", "changed", "missing"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the experiments."""

    name: str
    """Its result's path below the results folder, without the ending."""

    run: Callable[["Context"], Mapping[str, Any]]
    """Returns the result as JSON values; reads nothing but what its context gives."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """All settings that shape the result, as JSON values."""

    inputs: tuple[str, ...] = ()
    """Names of the stages whose results or files it reads."""

    data: tuple[str, ...] = ()
    """Files of the data folder that it reads."""

    version: int = 1
    """Raised by hand whenever `run` computes something else from the same settings."""

    minutes: float = 1.0
    """About how long it takes with a core to itself; for the time left until a run of it is on file."""

    alone: bool = False
    """It times things against each other: nothing runs beside it."""


class Runner:
    """Runs stages in their order, each after its inputs."""

    def __init__(self, stages: Sequence[Stage], *, data: Path, out: Path, results: Path, jobs: int = 1) -> None:
        """Keep the folders; nothing is read or written yet.

        `jobs`, for the record: how many stages run side by side.

        Raises:
            ValueError: two stages of one name, or one that reads a stage which does not come before it.
        """
        self.stages: dict[str, Stage] = {}
        for stage in stages:
            if stage.name in self.stages:
                raise ValueError(f"stage {stage.name!r}: expected a name of its own, got one twice")
            if unknown := [name for name in stage.inputs if name not in self.stages]:
                raise ValueError(f"stage {stage.name!r}: expected inputs that come before it, got {', '.join(unknown)}")
            self.stages[stage.name] = stage
        self.data, self.out, self.results, self.jobs = data, out, results, jobs
        self._file_digest = cache(_sha256)
        self._digests: dict[str, str] = {}

    def digest(self, name: str) -> str:
        """The digest of a stage.

        Raises:
            FileNotFoundError: one of its data files is not there.
        """
        if name not in self._digests:
            stage = self.stages[name]
            known = {
                "name": stage.name,
                "version": stage.version,
                "config": stage.config,
                "inputs": {one: self.digest(one) for one in stage.inputs},
                "data": {one: self._file_digest(self.data / one) for one in stage.data},
            }
            self._digests[name] = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        return self._digests[name]

    def state(self, name: str) -> State:
        """Whether the stage's result is there and was made from what is given now."""
        found = read_result(self.results, name)
        if found is None:
            return "missing"
        return "done" if found["digest"] == self.digest(name) else "changed"

    def seconds(self, name: str) -> float:
        """How long the stage took when it last ran, else about how long it will."""
        found = read_result(self.results, name)
        return 60 * self.stages[name].minutes if found is None else float(found["seconds"])

    def outstanding(self, wanted: Sequence[str] = ()) -> list[str]:
        """The stages to run, in order: those wanted (default: all) and their inputs, without what is done."""
        needed = set(wanted or self.stages)
        for name in reversed(self.stages):
            if name in needed:
                needed.update(self.stages[name].inputs)
        return [name for name in self.stages if name in needed and self.state(name) != "done"]

    def run(self, name: str) -> dict[str, Any]:
        """Run a stage whose inputs are done, write its result and return it."""
        stage = self.stages[name]
        began = time.perf_counter()
        with self._scratch(name) as folder:
            result = dict(stage.run(Context(runner=self, stage=stage, folder=folder)))
        record = {
            "stage": name,
            "digest": self.digest(name),
            "config": dict(stage.config),
            "seconds": round(time.perf_counter() - began, 1),
            "jobs": self.jobs,
            "threads": torch.get_num_threads(),
            **describe(),
            "result": result,
        }
        path = self.results / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
        return record

    def folder(self, name: str) -> Path:
        """The files that a stage left; made again where its result is on file and they are not.

        Of several processes that miss them one makes them, and the others wait for it.
        """
        folder = self._folder(name)
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.is_dir():
                    stage = self.stages[name]
                    with self._scratch(name) as scratch:
                        stage.run(Context(runner=self, stage=stage, folder=scratch))
        return folder

    def _folder(self, name: str) -> Path:
        return self.out / f"{name}-{self.digest(name)[:16]}"

    @contextmanager
    def _scratch(self, name: str) -> Iterator[Path]:
        """A folder to work in, which takes its final name when the stage is through."""
        final = self._folder(name)
        scratch = final.with_name(f"{final.name}.{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            yield scratch
            shutil.rmtree(final, ignore_errors=True)
            scratch.rename(final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a running stage may read and where it may write."""

    runner: Runner
    stage: Stage

    folder: Path
    """For the files that other stages read; empty at first."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The stage's settings."""
        return self.stage.config

    @property
    def data(self) -> Path:
        """The folder of the data files that the stage has declared."""
        return self.runner.data

    def result(self, name: str) -> dict[str, Any]:
        """The result of a stage that this one has declared as input."""
        self._require(name, self.stage.inputs, "inputs")
        found = read_result(self.runner.results, name)
        assert found is not None, name
        result: dict[str, Any] = found["result"]
        return result

    def files(self, name: str) -> Path:
        """The files of a stage that this one has declared as input."""
        self._require(name, self.stage.inputs, "inputs")
        return self.runner.folder(name)

    def shared(self, name: str, *, of: str) -> Path:
        """A folder that stages on the files of `of`, each an input of the next, fill and use again (SISA's shards)."""
        self._require(of, self.stage.inputs, "inputs")
        folder = self.runner.out / "shared" / f"{name}-{self.runner.digest(of)[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _require(self, name: str, declared: Sequence[str], what: str) -> None:
        if name not in declared:
            raise ValueError(f"stage {self.stage.name!r}: expected {name!r} among its {what}, got {list(declared)}")


def read_result(results: Path, name: str) -> dict[str, Any] | None:
    """The record of a stage, or None where there is none."""
    path = results / f"{name}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
