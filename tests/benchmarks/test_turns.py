"""What serving runs, and in which order: every comparison beside plain, nothing twice, one server at a time."""

from pathlib import Path

from benchmarks.load import Cell
from benchmarks.runs import RunLog
from benchmarks.serving import _key, turns
from benchmarks.variants import FEW_ROUNDS, Variant

ONE, EIGHT, SIXTEEN = (Cell(load="decode", batch=batch) for batch in (1, 8, 16))
PLAIN = Variant(name="plain", what="", server="plain", cells=(ONE, EIGHT))
FAST = Variant(name="default", what="", server="default", cells=(EIGHT,))
SLOW = Variant(name="peft", what="", server="peft", cells=(EIGHT,), slow=True)


def measure(
    log: RunLog, variants: list[Variant], *, rounds: int, stop_after: int = 1_000
) -> list[tuple[str, str, int]]:
    """Do as `_measure` does, without servers; returns (variant, cell, round) in order."""
    made = [(v.name, _key(cell), turn.round) for turn in turns(variants, log, rounds) for v, cell in turn.runs]
    for name, cell, round_ in made[:stop_after]:
        log.append({"variant": name, "cell": cell, "round": round_})
    return made[:stop_after]


def test_every_round_has_plain_and_each_variant_once(tmp_path: Path) -> None:
    made = measure(RunLog(tmp_path / "runs.jsonl"), [PLAIN, FAST], rounds=4)
    assert len(made) == len(set(made)) == 4 * 3
    assert {made.count(("plain", "decode-8", round_)) for round_ in range(4)} == {1}


def test_a_server_is_started_once_a_round_in_an_order_of_the_rounds_own(tmp_path: Path) -> None:
    second = Variant(name="routes4", what="", server="default", cells=(ONE, EIGHT))
    planned = turns([PLAIN, FAST, second], RunLog(tmp_path / "runs.jsonl"), 20)
    orders = [tuple(turn.server for turn in planned if turn.round == round_) for round_ in range(20)]
    assert set(orders) == {("plain", "default"), ("default", "plain")}


def test_what_is_slow_or_of_the_largest_batch_takes_fewer_rounds(tmp_path: Path) -> None:
    plain = Variant(name="plain", what="", server="plain", cells=(ONE, EIGHT, SIXTEEN))
    made = measure(RunLog(tmp_path / "runs.jsonl"), [plain, SLOW], rounds=6)
    assert {round_ for name, _, round_ in made if name == "peft"} == set(range(FEW_ROUNDS))
    assert {round_ for _, cell, round_ in made if cell == "decode-16"} == set(range(FEW_ROUNDS))
    assert {round_ for _, cell, round_ in made if cell == "decode-8"} == set(range(6))


def test_a_variant_that_is_added_later_gets_a_plain_of_its_own_where_it_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    measure(RunLog(path), [PLAIN, FAST], rounds=2)
    made = measure(RunLog(path), [PLAIN, FAST, SLOW], rounds=2)
    assert sorted(made) == sorted((name, "decode-8", round_) for name in ("plain", "peft") for round_ in range(2))


def test_a_stopped_run_goes_on_and_then_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    first = measure(RunLog(path), [PLAIN, FAST], rounds=3, stop_after=4)
    second = measure(RunLog(path), [PLAIN, FAST], rounds=3)
    assert {*first, *second} == set(measure(RunLog(tmp_path / "whole.jsonl"), [PLAIN, FAST], rounds=3))
    assert turns([PLAIN, FAST], RunLog(path), 3) == []
