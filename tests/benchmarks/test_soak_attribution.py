"""Which release each token is from: the check behind `stale_tokens`, and that it can fail."""

import random
from collections.abc import Sequence

import pytest

from benchmarks.soak.attribution import attribute, in_own_words, times_of
from benchmarks.soak.check import spread
from benchmarks.soak.eras import Era, eras_of, named_eras
from benchmarks.streams import StreamedRequest

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
WORDS = {A: frozenset(range(10)), B: frozenset(range(10, 20)), C: frozenset(range(20, 30))}
ERAS = [
    Era(generation=1, release=A, begins=0.0, ends=10.05),
    Era(generation=2, release=B, begins=10.0, ends=20.05),
    Era(generation=3, release=A, begins=20.0),
]


def request(
    words: str, first_at: float, *, names: tuple[int, int | None], every: float = 0.1, **fields: object
) -> StreamedRequest:
    """A request whose tokens are from the releases spelt by `words`; `names` are header's and fingerprint's eras."""
    made = StreamedRequest(stream=0, model="base", prompt=[1], started=first_at - 0.2)
    begun, ended = ERAS[names[0] - 1], None if names[1] is None else ERAS[names[1] - 1]
    made.release, made.generation = begun.release, begun.generation
    made.fingerprint = f"unlearn-{ended.release[:16]}-g{ended.generation}" if ended else None
    for number, word in enumerate(words):
        made.token_ids.append("abc".index(word) * 10 + number % 10)
        made.tokens.append((first_at + every * number, number + 1))
    made.ended = made.tokens[-1][0] + 0.01
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def stale(one: StreamedRequest, eras: Sequence[Era] = ERAS) -> int:
    named = named_eras(one, eras)
    assert named, "it names releases that were live"
    return attribute(named, in_own_words(one, named, WORDS), times_of(one)).stale


@pytest.mark.parametrize(
    ("words", "first_at", "names", "expected"),
    [
        ("aaaa", 5.0, (1, 1), 0),
        ("aaba", 5.0, (1, 1), 1),
        ("bbbb", 5.0, (1, 1), 4),
        ("aabb", 9.8, (1, 2), 0),
        ("aabbab", 9.8, (1, 2), 1),
        ("bbbb", 10.1, (1, 2), 0),
        ("aacb", 9.8, (1, 2), 1),
    ],
    ids=["one release", "one stale", "named but not live", "through a swap", "and back", "waited", "of a third"],
)
def test_tokens_that_are_not_of_a_named_release_are_stale(
    words: str, first_at: float, names: tuple[int, int], expected: int
) -> None:
    assert stale(request(words, first_at, names=names)) == expected


def test_an_answer_may_live_through_several_swaps() -> None:
    slow = request("a" * 50 + "b" * 100 + "a" * 10, 5.05, names=(1, 3))
    assert stale(slow) == 0
    early = request("a" * 50 + "b" * 50 + "a" * 60, 5.05, names=(1, 3))
    assert stale(early) == 49, "the first again, from 15.05 on, live again from 20 on"


def test_a_token_from_before_its_release_was_live_is_stale() -> None:
    early = request("aabb", 9.0, names=(1, 2), every=0.4)  # the first b at 9.8, live from 10.0 on
    assert stale(early) == 1


def test_the_earlier_release_may_be_read_late_but_not_for_long() -> None:
    late = request("a" * 50, 9.0, names=(1, 2))  # the last at 13.9; A was live until 10.05, readers lag up to 2 s
    assert stale(late) == sum(at > 12.05 for _, at in times_of(late)) > 0


def test_what_is_read_in_one_go_may_be_as_old_as_the_read_before_it() -> None:
    """A client that gets no turn for seconds says nothing of when the server made what it then finds."""
    lump = request("aabbbbbb", 13.0, names=(1, 2), every=0.001, started=9.5)
    assert stale(lump) == 0
    assert stale(request("aabbbbbb", 13.0, names=(1, 2), every=0.1, started=9.5)) == 1, "the second came by itself"
    of_later = request("aabbbbbb", 13.0, names=(1, 2), every=0.001, started=10.3)
    assert not named_eras(of_later, ERAS), "it names a release that was gone before it was asked for"
    names_late = request("bbbb", 23.0, names=(2, 2), every=0.001, started=19.0)
    assert stale(names_late) == 0


def test_a_single_late_token_does_not_show_that_no_other_was_on_its_way() -> None:
    """As seen: an API server without a turn for seconds passed on one of nine, then had to wait again."""
    at = [9.8, 9.9, 10.0, 11.2, 14.0, 14.001, 14.002, 14.003]
    assert stale(came(at, "aaaaaabb")) == 0
    one_by_one = [9.8, 9.9, 10.0, 11.2, 11.3, 14.0, 14.001, 14.002]
    assert stale(came(one_by_one, "aaaaaabb")) == 1, "from 11.3 on nothing was held up, and A was gone"


def came(at: Sequence[float], words: str) -> StreamedRequest:
    """An answer through the first swap, whose tokens came at these times."""
    made = request(words, at[0], names=(1, 2))
    made.tokens = [(moment, number) for number, moment in enumerate(at, start=1)]
    made.ended = at[-1] + 0.01
    return made


def test_stale_keys_and_values_show_as_tokens_that_a_fresh_computation_would_not_give() -> None:
    one = request("aabbbb", 9.8, names=(1, 2))
    named = named_eras(one, ERAS)
    fresh = {A: [True, True, False, False, False, False], B: [True, True, False, True, False, True]}
    assert attribute(named, fresh, times_of(one)).stale == 2


def test_the_cut_is_the_best_of_all() -> None:
    chance = random.Random(0)
    for _ in range(200):
        eras = [Era(generation=number, release=name, begins=0.0) for number, name in enumerate("xyz", start=1)]
        fits = {name: [chance.random() < 0.6 for _ in range(7)] for name in "xyz"}
        tried = [
            sum(not fits["x" if token < one else "y" if token < two else "z"][token] for token in range(7))
            for one in range(8)
            for two in range(one, 8)
        ]
        found = attribute(eras, fits, [(1.0, 1.0)] * 7)
        assert found.stale == min(tried)
        given = [era.generation for era in found.eras]
        assert given == sorted(given), "a release that is gone does not come back"
        assert sum(not fits[era.release][token] for token, era in enumerate(found.eras)) == found.stale


@pytest.mark.parametrize(
    "fields",
    [
        {"release": None, "generation": None},
        {"release": "plain", "generation": 0},
        {"release": B},
        {"fingerprint": "unlearn-plain"},
        {"fingerprint": f"unlearn-{C[:16]}-g2"},
        {"fingerprint": f"unlearn-{B[:16]}-g2"},
        {"fingerprint": f"unlearn-{A[:16]}-g3"},
    ],
    ids=["no header", "plain", "another header", "plain at the end", "another", "not yet", "long before its time"],
)
def test_a_response_must_name_what_was_live(fields: dict[str, object]) -> None:
    assert named_eras(request("aaaa", 5.0, names=(1, 1)), ERAS) == ERAS[:1]
    assert named_eras(request("aaaa", 5.0, names=(1, 1), **fields), ERAS) == []


def test_a_header_of_a_release_that_was_no_longer_live_is_seen() -> None:
    assert named_eras(request("bbbb", 15.0, names=(1, 2)), ERAS) == []


def test_a_response_that_was_cut_may_be_of_all_that_was_live_until_then() -> None:
    assert named_eras(request("aabb", 9.8, names=(1, None)), ERAS) == ERAS[:2]
    assert named_eras(request("aaaa", 5.0, names=(1, None)), ERAS) == ERAS[:1]


def test_eras_are_read_from_audit_records() -> None:
    def record(event: str, second: int, generation: int | None = None, release: str | None = None) -> dict[str, object]:
        stall = 50.0 if event == "swap" else None
        at = f"2026-01-01T00:00:{second:02}Z"
        return {"event": event, "at": at, "generation": generation, "release": release, "stall_ms": stall}

    found = eras_of(
        [
            record("start", 1, 1, A),
            record("refusal", 2, 2, C),
            record("store-unreachable", 3),
            record("swap", 10, 3, B),
            record("start", 15, 3, B),
            record("swap", 20, 4, A),
        ]
    )
    assert [(era.generation, era.release) for era in found] == [(1, A), (3, B), (4, A)]
    assert found[0].ends - found[1].begins == pytest.approx(0.05), "the swap's stall belongs to neither alone"
    assert found[2].ends == float("inf")


def test_chosen_answers_are_spread_over_the_whole_run() -> None:
    assert spread(range(10), 20) == list(range(10))
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(10), 0) == spread(range(10), -3) == []
