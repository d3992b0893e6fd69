"""The figures of a soak: growth of memory, percentiles, bars."""

import random
from typing import Any

import pytest

from benchmarks.soak.memory import Sample, after_warm_up, growth
from benchmarks.soak.report import FaultRecord, KillReport, Report, Run, count_by_kind, percentile, shown


def samples(*mib: float) -> list[Sample]:
    return [Sample(2.0 * number, one) for number, one in enumerate(mib)]


def test_growth_is_the_share_by_which_memory_rises_after_the_warm_up() -> None:
    rising = [1000.0 + 0.1 * number for number in range(300)]
    assert growth(samples(*rising)) == pytest.approx(0.1 * 199 / (1000 + 0.1 * 100), rel=1e-6)


def test_what_fills_up_during_the_warm_up_is_no_growth() -> None:
    assert growth(samples(*[100.0 + number for number in range(20)], *[200.0] * 80)) == pytest.approx(0.0)


def test_single_peaks_do_not_move_it_but_a_slow_leak_does() -> None:
    chance = random.Random(1)
    noisy = [1000.0 + chance.gauss(0, 1) + (500 if number % 50 == 0 else 0) for number in range(900)]
    assert growth(samples(*noisy)) == pytest.approx(0.0, abs=0.001)
    leaking = [mib + 0.05 * number for number, mib in enumerate(noisy)]
    assert growth(samples(*leaking)) == pytest.approx(0.037, abs=0.005), "bars say 0.02"


def test_a_warm_up_is_a_third_but_no_more_than_five_minutes() -> None:
    assert len(after_warm_up(samples(*[1.0] * 91))) == 61
    assert after_warm_up(samples(*[1.0] * 901))[0].at == 300.0
    assert after_warm_up([]) == []


def test_growth_of_too_few_samples_is_not_known() -> None:
    assert growth(samples(1.0, 2.0)) is None
    assert growth([]) is None


def test_percentiles() -> None:
    assert percentile([float(number) for number in range(101)], 0.99) == 99.0
    assert percentile([float(number) for number in range(101)], 0.5) == 50.0
    assert (percentile([7.0], 0.99), percentile([], 0.5)) == (7.0, 0.0)


ABOUT: dict[str, Any] = {"machine": {}, "versions": {}, "config": {}, "commit": "0", "date": "today"}


def soaked(**fields: object) -> Report:
    good: dict[str, Any] = {
        "minutes": 30.0,
        "requests": 1000,
        "tokens": 48000,
        "swaps": 300,
        "failed_requests": 0,
        "first_failure": None,
        "misnamed_responses": 0,
        "stale_tokens": 0,
        "computed_afresh": 100,
        "through_swaps": 10,
        "rss_growth": 0.001,
        "rss_mib": 3000.0,
        "stall_ms_p50": 20.0,
        "stall_ms_p99": 40.0,
        "faults": {},
        "faults_not_survived": 0,
        "fault_log": [],
        "defect": None,
        **ABOUT,
    }
    return Report(**{**good, **fields})


def missed(report: Report | KillReport) -> list[str]:
    return [bar.what for bar in report.bars() if bar.verdict != "ok"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"swaps": 299}, ["swaps under load"]),
        ({"failed_requests": 1}, ["failed requests"]),
        ({"stale_tokens": 1}, ["tokens not of the release named"]),
        ({"rss_growth": 0.021}, ["growth of resident memory"]),
        ({"rss_growth": None}, ["growth of resident memory"]),
        ({"faults_not_survived": 1}, ["faults not survived"]),
        ({"minutes": 3.0, "swaps": 30}, []),
        ({"minutes": 9.0, "minutes_asked": 3.0, "swaps": 30}, []),
        ({"minutes": 9.0, "minutes_asked": 3.0, "swaps": 29}, ["swaps under load"]),
    ],
)
def test_bars_of_a_soak(fields: dict[str, object], expected: list[str]) -> None:
    assert missed(soaked(**fields)) == expected
    assert "ok" in shown(soaked(**fields).bars())


def killed(**fields: object) -> Run:
    good: dict[str, Any] = {
        "killed": "worker",
        "moment": "idle",
        "damage": "none",
        "expected": "ready",
        "got": "ready",
        "release_before": "a",
        "release_after": "a",
        "stale_tokens": 0,
        "lingered": [],
        "seconds": 1.0,
    }
    return Run(**{**good, **fields})


@pytest.mark.parametrize(
    ("run", "sound"),
    [
        (killed(), True),
        (killed(expected="refuses", got="refuses"), True),
        (killed(got="refuses"), False),
        (killed(expected="refuses"), False),
        (killed(stale_tokens=1), False),
    ],
    ids=["ready", "refuses as it must", "refuses though nothing is wrong", "ready though damaged", "stale tokens"],
)
def test_a_restart_is_sound_only_as_documented(run: Run, sound: bool) -> None:
    assert run.sound is sound


def test_faults_are_counted_by_kind() -> None:
    faults = [
        FaultRecord(kind=kind, at=0.0, seconds=1.0, survived=True, detail="") for kind in ("frozen", "slow", "frozen")
    ]
    assert count_by_kind(faults) == {"frozen": 2, "slow": 1}
