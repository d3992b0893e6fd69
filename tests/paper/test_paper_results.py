"""The committed results: of the stages as they are now, above their bars, and what docs/results.md says."""

import json
import shutil
from pathlib import Path

from benchmarks.paper.__main__ import PAGE
from benchmarks.paper.bars import bars
from benchmarks.paper.claims import CLAIMS
from benchmarks.paper.notes import NOTES
from benchmarks.paper.plan import plan
from benchmarks.paper.render import render
from benchmarks.paper.sizes import FULL
from benchmarks.paper.stages import read_result
from benchmarks.results import RESULTS

PAPER = RESULTS / "paper"


def test_every_stage_has_a_result_of_its_settings() -> None:
    found = {stage.name: read_result(PAPER, stage.name) for stage in plan(FULL)}

    assert [name for name, record in found.items() if record is None] == []
    assert [
        stage.name for stage in plan(FULL) if found[stage.name]["config"] != json.loads(json.dumps(dict(stage.config)))
    ] == []


def test_no_result_is_left_of_a_stage_that_is_no_more() -> None:
    names = {stage.name for stage in plan(FULL)} | {"summary"}

    assert {str(path.relative_to(PAPER).with_suffix("")) for path in PAPER.rglob("*.json")} == names


def test_results_come_from_committed_code() -> None:
    commits = {record["commit"] for stage in plan(FULL) if (record := read_result(PAPER, stage.name))}

    assert [commit for commit in commits if not commit or commit.endswith("-modified")] == []


def test_bars_hold() -> None:
    assert [bar for bar in bars(json.loads((PAPER / "summary.json").read_text())) if not bar.holds] == []


def test_what_does_not_agree_with_the_paper_has_a_reason() -> None:
    differing = {claim.name for claim in CLAIMS if (found := claim.check(PAPER)) and not found[0]}

    assert differing == set(NOTES)


def test_page_and_summary_are_what_the_results_say(tmp_path: Path) -> None:
    results, page = tmp_path / "benchmarks" / "results" / "paper", tmp_path / "docs" / PAGE.name
    shutil.copytree(PAPER, results)

    render(results, page, FULL)

    assert page.read_text() == PAGE.read_text(), "run python -m benchmarks.paper --render"
    assert (results / "summary.json").read_text() == (PAPER / "summary.json").read_text()
