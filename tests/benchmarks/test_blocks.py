"""What serving runs, and in which order: every comparison beside plain, nothing twice."""

from pathlib import Path

from benchmarks.load import Cell
from benchmarks.runs import RunLog
from benchmarks.serving import _blocks, _key
from benchmarks.variants import SLOW_ROUNDS, Variant

ONE, EIGHT = Cell(load="decode", batch=1), Cell(load="decode", batch=8)
PLAIN = Variant(name="plain", what="", server="plain", cells=(ONE, EIGHT))
FAST = Variant(name="default", what="", server="default", cells=(EIGHT,))
SLOW = Variant(name="peft", what="", server="peft", cells=(EIGHT,), slow=True)


def measure(
    log: RunLog, variants: list[Variant], *, rounds: int, stop_after: int = 1_000
) -> list[tuple[str, str, int]]:
    """Do as `_measure` does, without servers; returns (variant, cell, round) in order."""
    made = [(name, _key(cell), round_) for round_, cell, order in _blocks(variants, log, rounds) for name in order]
    for name, cell, round_ in made[:stop_after]:
        log.append({"variant": name, "cell": cell, "round": round_})
    return made[:stop_after]


def test_every_block_has_plain_and_each_variant_once(tmp_path: Path) -> None:
    made = measure(RunLog(tmp_path / "runs.jsonl"), [PLAIN, FAST], rounds=4)
    assert len(made) == len(set(made)) == 4 * 3
    assert {made.count(("plain", "decode-8", round_)) for round_ in range(4)} == {1}


def test_what_is_slow_takes_fewer_rounds_in_a_later_session_with_a_plain_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    measure(RunLog(path), [PLAIN, FAST], rounds=6)
    made = measure(RunLog(path), [PLAIN, SLOW], rounds=6)
    assert sorted(made) == sorted(
        (name, "decode-8", round_) for name in ("plain", "peft") for round_ in range(SLOW_ROUNDS)
    ), "plain at batch 1 has been measured and nothing new is compared with it there"


def test_a_stopped_run_goes_on_and_then_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    first = measure(RunLog(path), [PLAIN, FAST], rounds=3, stop_after=4)
    second = measure(RunLog(path), [PLAIN, FAST], rounds=3)
    assert {*first, *second} == set(measure(RunLog(tmp_path / "whole.jsonl"), [PLAIN, FAST], rounds=3))
    assert _blocks([PLAIN, FAST], RunLog(path), 3) == []
