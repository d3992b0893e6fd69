"""The committed soak and kills: read back, and every bar holds."""

from benchmarks.results import RESULTS
from benchmarks.soak.report import KillReport, Report


def test_the_soak_holds_its_bars() -> None:
    report = Report.model_validate_json((RESULTS / "soak.json").read_bytes())

    assert report.minutes >= 30
    assert report.swaps >= 10 * report.minutes
    assert report.defect is None, "a seeded defect shows that a soak notices it, not that a server holds"
    assert [bar for bar in report.bars() if bar.verdict != "ok"] == []
    assert report.misnamed_responses == 0
    assert report.through_swaps > 0, "without an answer across a swap, little was shown"


def test_the_kills_hold_their_bars() -> None:
    report = KillReport.model_validate_json((RESULTS / "kills.json").read_bytes())

    assert [bar for bar in report.bars() if bar.verdict != "ok"] == []
    assert report.kills == len(report.runs) == report.ready + report.refused + report.unsound
    assert all(run.sound for run in report.runs)
