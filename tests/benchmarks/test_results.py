"""Result lines: the committed ones read back, and a line is what its runs say."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from benchmarks import bars
from benchmarks.plots import draw
from benchmarks.results import (
    RESULTS,
    GrowthResult,
    LatencyResult,
    ResultLine,
    ServingResult,
    SwapResult,
    read_lines,
    summarise,
    write_lines,
)

SCHEMAS: dict[str, type[ResultLine]] = {
    "serving": ServingResult,
    "swap": SwapResult,
    "growth": GrowthResult,
    "latency": LatencyResult,
}
ABOUT: dict[str, Any] = {"machine": {}, "versions": {}, "config": {}, "commit": "0" * 12, "date": "2026-01-01"}
PROMISED = {
    *("variant", "load", "batch", "output_tokens_per_s", "ttft_ms_p50", "itl_ms_p50", "itl_ms_p99"),
    *("ratio_to_plain", "runs", "spread", "machine", "versions", "config", "date"),
}


def run(block: int, variant: str, speed: float) -> dict[str, Any]:
    figures = {"input_tokens_per_s": speed, "ttft_ms_p50": 1.0, "itl_ms_p50": 1.0, "itl_ms_p99": 2.0}
    return {
        "block": block,
        "variant": variant,
        "load": "decode",
        "batch": 8,
        "output_tokens_per_s": speed,
        "peak_memory_mib": 10.0,
        **figures,
    }


def line_of(variant: str, runs: list[dict[str, Any]]) -> ServingResult | None:
    return summarise(runs, variant=variant, what="", load="decode", batch=8, others=["lora-down"], about=ABOUT)


RUNS = [
    *(run(block, "plain", speed) for block, speed in enumerate((100.0, 200.0, 150.0))),
    *(run(block, "routes4", speed) for block, speed in enumerate((96.0, 190.0, 150.0))),
    *(run(block, "lora-down", speed) for block, speed in enumerate((30.0, 60.0, 40.0))),
]


def test_a_line_is_the_median_of_paired_ratios() -> None:
    line = line_of("routes4", RUNS)
    assert line is not None
    assert (line.ratio_to_plain, line.output_tokens_per_s, line.runs) == (0.96, 150.0, 3)
    assert (line.spread["min"], line.spread["max"]) == (0.95, 1.0)
    assert line.ratio_to == {"lora-down": pytest.approx(3.2)}
    assert set(line.model_dump()) >= PROMISED


def test_what_was_not_measured_has_no_line() -> None:
    assert line_of("default", RUNS) is None


def test_an_unknown_field_is_refused() -> None:
    line = line_of("plain", RUNS)
    assert line is not None
    with pytest.raises(ValidationError, match="Extra inputs"):
        ServingResult.model_validate({**line.model_dump(), "mean": 1.0})


def test_lines_survive_the_file_and_the_plots_and_bars_read_them(tmp_path: Path) -> None:
    lines = [line for variant in ("plain", "routes4", "lora-down") if (line := line_of(variant, RUNS))]
    write_lines(tmp_path / "serving.jsonl", lines)
    assert [ServingResult.model_validate(line) for line in read_lines(tmp_path / "serving.jsonl")] == lines
    (drawn,) = draw(tmp_path)
    assert "routes4" in drawn.read_text()
    verdicts = {bar.what: bar.verdict for bar in bars.bars(tmp_path)}
    assert verdicts["routes4 over plain, decode, batch 8"] == "ok"
    assert verdicts["routes4 over lora-down, decode, batch 8"] == "ok"
    assert verdicts["default over plain, decode, batch 8"] == "not measured"


def test_a_missed_bar_is_called_that() -> None:
    assert bars.Bar(what="", low=0.96, got=0.95).verdict == "MISSED"
    assert bars.Bar(what="", low=0.98, high=1.02, got=1.03).verdict == "MISSED"


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_committed_results_follow_the_schema(name: str) -> None:
    for line in read_lines(RESULTS / f"{name}.jsonl"):
        SCHEMAS[name].model_validate_json(json.dumps(line))
