"""Which stage begins when, side by side; and that real processes run them."""

from pathlib import Path

import pytest

from benchmarks.paper.running import Schedule, Where, run_outstanding
from benchmarks.paper.stages import Runner, Stage


def schedule(folder: Path, **stages: tuple[tuple[str, ...], bool]) -> Schedule:
    """By name: inputs, and whether it is to be alone."""
    made = [Stage(name=name, run=lambda _: {}, inputs=inputs, alone=alone) for name, (inputs, alone) in stages.items()]
    return Schedule(Runner(made, data=folder, out=folder, results=folder), list(stages))


def test_a_stage_waits_for_its_inputs_and_another_takes_its_turn(tmp_path: Path) -> None:
    plan = schedule(tmp_path, one=((), False), two=(("one",), False), three=((), False))
    assert [plan.next(), plan.next(), plan.next()] == ["one", "three", None]
    plan.ended("three")
    assert plan.next() is None
    plan.ended("one")
    assert plan.next() == "two"
    plan.ended("two")
    assert plan.left == plan.failed == []


def test_a_stage_that_is_to_be_alone_is(tmp_path: Path) -> None:
    plan = schedule(tmp_path, one=((), False), timed=((), True), two=((), False))
    assert plan.next() == "one"
    assert plan.next() is None, "neither beside another, nor overtaken for ever"
    plan.ended("one")
    assert plan.next() == "timed"
    assert plan.next() is None, "and nothing beside it"
    plan.ended("timed")
    assert plan.next() == "two"


def test_a_failure_takes_those_that_read_it_and_no_others(tmp_path: Path) -> None:
    plan = schedule(tmp_path, one=((), False), two=(("one",), False), three=(("two",), False), four=((), False))
    assert plan.next() == "one"
    plan.ended("one", failed=True)
    assert plan.failed == ["one", "two", "three"]
    assert plan.next() == "four"


@pytest.mark.model
def test_stages_run_in_processes_of_their_own(tmp_path: Path) -> None:
    where = Where(quick=True, data=tmp_path / "none", out=tmp_path / "out", results=tmp_path / "results", jobs=2)
    assert run_outstanding(where, ["base"]) == []
    assert (tmp_path / "results" / "base.json").is_file()
    assert run_outstanding(where, ["base"]) == [], "done"
