"""Pairing and spreads: a wrong pair makes a ratio that nobody measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pairing import paired_ratios, spread


def run(block: str, variant: str, speed: float) -> dict[str, object]:
    return {"block": block, "variant": variant, "speed": speed}


def test_ratios_are_taken_within_blocks() -> None:
    # The machine was twice as fast in block b. Medians divided by medians would give 150 / 150 = 1.
    runs = [run("a", "plain", 100), run("a", "x", 90), run("b", "x", 180), run("b", "plain", 200)]
    assert paired_ratios(runs, "x", "plain", "speed") == [0.9, 0.9]


def test_a_block_without_a_partner_is_left_out() -> None:
    runs = [run("a", "plain", 100), run("b", "x", 50), run("b", "plain", 100), run("c", "x", 7)]
    assert paired_ratios(runs, "x", "plain", "speed") == [0.5]


def test_two_runs_of_one_variant_in_a_block_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="block 'a': expected one run of x, got two"):
        paired_ratios([run("a", "x", 1), run("a", "plain", 1), run("a", "x", 2)], "x", "plain", "speed")


def test_the_baseline_over_itself_is_one() -> None:
    assert paired_ratios([run("a", "plain", 3), run("b", "plain", 4)], "plain", "plain", "speed") == [1.0, 1.0]


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=9))
def test_a_spread_is_ordered_and_within_the_values(values: list[float]) -> None:
    got = list(spread(values).values())
    assert got == sorted(got)
    assert (got[0], got[-1]) == (min(values), max(values))


def test_the_spread_of_five() -> None:
    assert spread([5, 1, 4, 2, 3]) == {"min": 1, "q25": 2, "median": 3, "q75": 4, "max": 5}


def test_no_values_have_no_spread() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        spread([])
