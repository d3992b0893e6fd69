"""`python -m benchmarks.paper`: what it says before it has run for hours."""

import sys
from pathlib import Path

import pytest

from benchmarks.paper.__main__ import main


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["benchmarks.paper", *arguments, "--out", str(tmp_path / "out")])
        main()

    return run


def test_missing_data_end_it_before_anything_runs(said, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*expected the experiments' data there, got no imdb/test.jsonl"):
        said("--data", str(tmp_path), "--results", str(tmp_path / "results"))
    assert not (tmp_path / "out" / "full").exists()


def test_an_unknown_stage_is_refused(said) -> None:
    with pytest.raises(SystemExit, match=r"error: expected names or patterns of stages, got tofo/\*; --list shows"):
        said("tofo/*", "--quick")


def test_list_shows_every_stage_and_runs_none(said, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said("--list", "--quick")
    shown = capsys.readouterr().out
    assert "tofu/original" in shown
    assert "imdb/mislabelled/eul-bounded-seed0" in shown
    assert "missing" in shown
    assert "done" not in shown
    assert not list((tmp_path / "out" / "quick").glob("base*"))
