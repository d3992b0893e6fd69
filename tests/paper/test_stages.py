"""The runner: what is done is skipped, what changed is not, and nothing half-done is taken for whole."""

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper.stages import Context, Runner, Stage


class Calls:
    """Two stages, the second of which reads the first's result and files; counts how often each ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = {"one": 0, "two": 0}
        (folder / "data").mkdir()
        (folder / "data" / "rows.jsonl").write_text("{}\n")

    def one(self, ctx: Context) -> Mapping[str, Any]:
        self.count["one"] += 1
        (ctx.folder / "model").write_text("weights")
        return {"value": ctx.config["value"]}

    def two(self, ctx: Context) -> Mapping[str, Any]:
        self.count["two"] += 1
        return {"sum": ctx.result("one")["value"] + len((ctx.files("one") / "model").read_text())}

    def stages(self, value: int = 1) -> list[Stage]:
        return [
            Stage(name="one", run=self.one, config={"value": value}, data=("rows.jsonl",)),
            Stage(name="two", run=self.two, inputs=("one",)),
        ]

    def runner(self, stages: list[Stage] | None = None) -> Runner:
        return Runner(
            stages or self.stages(),
            data=self.folder / "data",
            out=self.folder / "out",
            results=self.folder / "results",
        )

    def run_outstanding(self, stages: list[Stage] | None = None) -> list[str]:
        runner = self.runner(stages)
        names = runner.outstanding()
        for name in names:
            runner.run(name)
        return names


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path)


def test_runs_in_order_once(calls: Calls) -> None:
    assert calls.run_outstanding() == ["one", "two"]
    assert calls.run_outstanding() == []
    assert calls.count == {"one": 1, "two": 1}
    assert json.loads((calls.folder / "results" / "two.json").read_text())["result"] == {"sum": 8}


def test_other_settings_make_the_stage_and_those_that_read_it_outstanding(calls: Calls) -> None:
    calls.run_outstanding()
    assert calls.runner(calls.stages(value=2)).state("two") == "changed"
    assert calls.run_outstanding(calls.stages(value=2)) == ["one", "two"]


def test_other_data_make_it_outstanding(calls: Calls) -> None:
    calls.run_outstanding()
    (calls.folder / "data" / "rows.jsonl").write_text('{"more": 1}\n')
    assert calls.runner().outstanding() == ["one", "two"]


def test_a_raised_version_makes_it_outstanding(calls: Calls) -> None:
    calls.run_outstanding()
    one, two = calls.stages()
    assert calls.runner([one, dataclasses.replace(two, version=2)]).outstanding() == ["two"]


def test_files_that_are_gone_are_made_again_and_the_result_stays(calls: Calls) -> None:
    """A clone has the committed results and no checkpoints: a stage that needs one must not find nothing."""
    calls.run_outstanding()
    before = (calls.folder / "results" / "one.json").read_text()
    (next((calls.folder / "out").glob("one-*")) / "model").unlink()
    next((calls.folder / "out").glob("one-*")).rmdir()
    (calls.folder / "results" / "two.json").unlink()
    assert calls.run_outstanding() == ["two"]
    assert calls.count == {"one": 2, "two": 2}
    assert (calls.folder / "results" / "one.json").read_text() == before


def test_files_that_several_stages_miss_are_made_again_once(calls: Calls) -> None:
    """Who came second would put its own in their place while the first reads them."""
    calls.run_outstanding()
    shutil.rmtree(next((calls.folder / "out").glob("one-*")))
    both = threading.Barrier(2)

    def slow(ctx: Context) -> Mapping[str, Any]:
        time.sleep(0.2)
        return calls.one(ctx)

    def asks() -> Path:
        one, two = calls.stages()
        runner = calls.runner([dataclasses.replace(one, run=slow), two])
        both.wait()
        return runner.folder("one")

    with ThreadPoolExecutor(2) as pool:
        found = {job.result() for job in [pool.submit(asks) for _ in range(2)]}
    assert calls.count["one"] == 2
    assert [(folder / "model").read_text() for folder in found] == ["weights"]


def test_a_stage_that_fails_leaves_neither_result_nor_files(calls: Calls) -> None:
    def fails(ctx: Context) -> Mapping[str, Any]:
        (ctx.folder / "half").write_text("x")
        raise RuntimeError("stopped")

    runner = calls.runner([Stage(name="one", run=fails)])
    with pytest.raises(RuntimeError, match="stopped"):
        runner.run("one")
    assert runner.state("one") == "missing"
    assert list((calls.folder / "out").iterdir()) == []


def test_what_is_wanted_brings_its_inputs(calls: Calls) -> None:
    assert calls.runner().outstanding(["two"]) == ["one", "two"]
    assert calls.runner().outstanding(["one"]) == ["one"]


def test_undeclared_inputs_are_refused(calls: Calls) -> None:
    """A result that is read without being declared would not count in the digest, and go stale unseen."""

    def reads(ctx: Context) -> Mapping[str, Any]:
        return ctx.result("one")

    runner = calls.runner([*calls.stages(), Stage(name="three", run=reads)])
    with pytest.raises(ValueError, match=r"stage 'three': expected 'one' among its inputs, got \[\]"):
        runner.run("three")


def test_stages_out_of_order_are_refused(calls: Calls) -> None:
    with pytest.raises(ValueError, match="stage 'two': expected inputs that come before it, got one"):
        calls.runner(calls.stages()[::-1])
    with pytest.raises(ValueError, match="stage 'one': expected a name of its own, got one twice"):
        calls.runner([*calls.stages(), calls.stages()[0]])
