import dataclasses

import pytest
from demo.recording import RELEASE_1, SWAPS, answer, phase, streamed

from unlearn_serve.demo import checks

KNOWN = {"forget": 1.0, "forget_paraphrase": 1.0, "retain": 1.0, "general": 1.0}


def forgotten_phase(**accuracy: float) -> checks.Phase:
    levels = {"forget1": 0.0, "forget1_paraphrase": 0.0, "retain": 1.0, "general": 1.0} | accuracy
    return phase("first", RELEASE_1, levels)


def test_a_request_without_a_proper_end_fails() -> None:
    good = streamed(10.0, begun=0, ended=0)
    assert checks.no_request_failed([good]).ok
    cut_short = dataclasses.replace(good, finish_reason=None)
    refused = dataclasses.replace(good, error="APIConnectionError: gone")
    assert not checks.no_request_failed([good, cut_short]).ok
    check = checks.no_request_failed([good, refused])
    assert not check.ok
    assert "APIConnectionError" in check.detail


def test_a_run_without_any_request_shows_nothing() -> None:
    assert not checks.no_request_failed([]).ok


def test_a_changed_process_id_fails() -> None:
    assert checks.same_processes([1, 2], [1, 2]).ok
    assert not checks.same_processes([1, 2], [1, 3]).ok


@pytest.mark.parametrize(
    ("started", "begun", "ended"),
    [(10.0, 0, 0), (99.5, 0, 1), (110.0, 1, 1), (199.5, 1, 2), (250.0, 2, 2), (98.94, 0, 0), (99.9, 1, 1)],
)
def test_answers_under_the_live_release_pass(started: float, begun: int, ended: int) -> None:
    assert checks.served_as_announced([streamed(started, begun=begun, ended=ended)], SWAPS).ok


def test_an_answer_that_is_read_late_is_not_held_against_the_server() -> None:
    assert checks.served_as_announced([streamed(99.0, begun=0, ended=0, seconds=1.7)], SWAPS).ok


@pytest.mark.parametrize(
    ("started", "begun", "ended"),
    [(110.0, 0, 1), (110.0, 1, 0), (99.5, 0, 0), (97.5, 1, 1), (110.0, 2, 2), (250.0, 1, 1), (10.0, 1, 1)],
    ids=["begun on the old", "ended on the old", "swap missed", "swap too early", "next", "older", "from the future"],
)
def test_answers_under_another_release_fail(started: float, begun: int, ended: int) -> None:
    assert not checks.served_as_announced([streamed(started, begun=begun, ended=ended, seconds=3.0)], SWAPS).ok


@pytest.mark.parametrize(
    ("levels", "ok"),
    [
        ({}, True),
        ({"forget1": 0.1, "forget1_paraphrase": 0.2}, True),
        ({"forget1": 0.11}, False),
        ({"forget1_paraphrase": 0.21}, False),
    ],
)
def test_forgetting_is_held_to_its_limits(levels: dict[str, float], ok: bool) -> None:
    assert checks.forgotten(forgotten_phase(**levels), (1,)).ok is ok


def test_every_live_deletion_request_must_be_forgotten() -> None:
    both = forgotten_phase(forget2=0.5, forget2_paraphrase=0.0)
    assert checks.forgotten(both, (1,)).ok
    assert not checks.forgotten(both, (1, 2)).ok


@pytest.mark.parametrize(("level", "ok"), [(1.0, True), (0.95, True), (0.925, False)])
@pytest.mark.parametrize("kind", ["retain", "general"])
def test_retained_knowledge_may_fall_by_a_twentieth(kind: str, level: float, ok: bool) -> None:
    before = phase("before", "plain", KNOWN)
    assert checks.retained(before, forgotten_phase(**{kind: level})).ok is ok


def test_a_plain_model_that_knows_nothing_shows_nothing() -> None:
    assert checks.known_before(phase("before", "plain", KNOWN)).ok
    assert not checks.known_before(phase("before", "plain", KNOWN | {"forget": 0.5})).ok


def test_scores_must_come_from_the_phase_s_release() -> None:
    scored = phase("first", RELEASE_1, {}, answer("no", " idea"))
    assert checks.scored_under(scored, 1).ok
    assert not checks.scored_under(scored, 3).ok


def test_equal_answers_are_restored() -> None:
    one = phase("first", RELEASE_1, {}, answer("no", " idea"))
    rollback = checks.compare_answers(one, one)
    assert rollback.compared == 1
    assert rollback.largest_shift == 0
    assert not rollback.differences
    assert checks.restored(rollback).ok


@pytest.mark.parametrize(
    ("earlier", "later", "ok"),
    [
        ({" idea": -0.7, " clue": -0.8}, {" clue": -0.7, " idea": -0.75}, True),
        ({" idea": -0.7, " clue": -1.0}, {" clue": -0.7, " idea": -0.75}, False),
        ({" idea": -0.7, " clue": -0.8}, {" clue": -0.7, " idea": -1.0}, False),
        ({" idea": -0.7}, {" clue": -0.7}, False),
    ],
    ids=["tie", "clear call before", "clear call after", "unlikely token"],
)
def test_a_different_answer_must_be_a_numeric_tie(earlier: dict[str, float], later: dict[str, float], ok: bool) -> None:
    rollback = checks.compare_answers(
        phase("first", RELEASE_1, {}, answer("no", " idea", top=earlier)),
        phase("rolled back", RELEASE_1, {}, answer("no", " clue", top=later)),
    )
    assert len(rollback.differences) == 1
    assert checks.restored(rollback).ok is ok


def test_an_answer_that_only_ends_earlier_is_no_tie() -> None:
    rollback = checks.compare_answers(
        phase("first", RELEASE_1, {}, answer("no", " idea")), phase("rolled back", RELEASE_1, {}, answer("no"))
    )
    assert not checks.restored(rollback).ok


def test_the_shift_is_that_of_equal_tokens_before_the_answers_part() -> None:
    earlier = phase("first", RELEASE_1, {}, answer("no", top={"no": -0.5}), answer("a", "b", top={"b": -9.0}))
    later = phase("rolled back", RELEASE_1, {}, answer("no", top={"no": -0.6}), answer("a", "c", top={"c": -1.0}))
    assert checks.compare_answers(earlier, later).largest_shift == pytest.approx(0.1)
