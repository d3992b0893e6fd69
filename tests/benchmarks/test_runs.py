"""Going on where a benchmark was stopped, without pairing runs of one session with those of another."""

from pathlib import Path

from benchmarks.pairing import paired_ratios
from benchmarks.runs import RunLog, block_order

VARIANTS = ["plain", "x", "y"]


def record(log: RunLog, variant: str, speed: float, *, round_: int = 0) -> None:
    log.append({"variant": variant, "cell": "decode-8", "round": round_, "speed": speed})


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.jsonl")
    record(log, "plain", 100)
    record(log, "x", 90)
    again = RunLog(tmp_path / "runs.jsonl")
    assert again.missing(VARIANTS, cell="decode-8", round_=0, baseline="plain") == ["y"]
    assert again.missing(VARIANTS, cell="decode-8", round_=1, baseline="plain") == VARIANTS
    assert again.missing(VARIANTS, cell="prefill-8", round_=0, baseline="plain") == VARIANTS


def test_what_was_measured_before_its_baseline_could_be_is_measured_again(tmp_path: Path) -> None:
    record(RunLog(tmp_path / "runs.jsonl"), "x", 90)
    again = RunLog(tmp_path / "runs.jsonl")
    assert again.missing(VARIANTS, cell="decode-8", round_=0, baseline="plain") == VARIANTS


def test_a_session_that_goes_on_pairs_with_its_own_baseline(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.jsonl")
    record(log, "plain", 100)
    record(log, "x", 90)
    again = RunLog(tmp_path / "runs.jsonl")  # the machine is half as fast today
    record(again, "plain", 50)
    record(again, "y", 40)
    assert paired_ratios(again.runs, "x", "plain", "speed") == [0.9]
    assert paired_ratios(again.runs, "y", "plain", "speed") == [0.8]


def test_a_block_has_its_baseline_once_and_an_order_of_its_own() -> None:
    orders = [block_order(["y", "x"], baseline="plain", seed=str(seed)) for seed in range(20)]
    assert all(sorted(order) == VARIANTS for order in orders)
    assert len({tuple(order) for order in orders}) > 1, "always the same order would favour the same place"
    assert block_order(VARIANTS, baseline="plain", seed="0").count("plain") == 1
    assert block_order([], baseline="plain", seed="0") == []
