"""The committed results are those of today's plan, and the committed page is what they say."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.paper.bars import bars
from benchmarks.paper.claims import CLAIMS
from benchmarks.paper.page.notes import NOTES, REMARKS
from benchmarks.paper.page.render import render
from benchmarks.paper.plan import plan
from benchmarks.paper.sizes import FULL
from benchmarks.paper.stages import Stage, read_result
from benchmarks.paper.summary import NAME
from benchmarks.results import RESULTS

COMMITTED = RESULTS / "paper"
STAGES = plan(FULL)


@pytest.mark.parametrize("stage", STAGES, ids=lambda one: one.name)
def test_every_stage_has_a_result_of_its_settings(stage: Stage) -> None:
    """Made by code that is in the history: a commit's, with nothing changed on top."""
    record = read_result(COMMITTED, stage.name)
    assert record is not None, "still to be run"
    assert record["config"] == json.loads(json.dumps(stage.config))
    assert len(record["commit"]) == 12, record["commit"]


def test_no_result_is_of_a_stage_that_is_gone() -> None:
    found = {str(path.relative_to(COMMITTED).with_suffix("")) for path in COMMITTED.rglob("*.json")}
    assert found - {stage.name for stage in STAGES} == {Path(NAME).stem}


def test_every_bar_holds() -> None:
    found = bars(json.loads((COMMITTED / NAME).read_text()))
    assert [one.what for one in found if one.holds is False or one.verdict == "not measured"] == []
    assert {one.asked for one in found if one.holds is None} == {"no bar"}


def test_a_claim_that_does_not_hold_here_has_its_reason_and_no_other_has() -> None:
    found = {claim.name: claim.check(COMMITTED) for claim in CLAIMS}
    assert [name for name, one in found.items() if one is None] == []
    assert {name for name, one in found.items() if one is not None and not one[0]} == set(NOTES)
    assert set(REMARKS) <= set(found) - set(NOTES)


def test_page_and_summary_are_what_the_results_say(tmp_path: Path) -> None:
    """As they would be rendered now, in folders that lie to each other as the repository's do."""
    results, page = tmp_path / "benchmarks" / "results" / "paper", tmp_path / "docs" / "results.md"
    shutil.copytree(COMMITTED, results)
    render(results, page, FULL)
    assert page.read_text() == (RESULTS.parents[1] / "docs" / "results.md").read_text()
    assert (results / NAME).read_text() == (COMMITTED / NAME).read_text()
