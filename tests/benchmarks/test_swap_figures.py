"""What a change does to clients, from what they saw."""

import pytest

from benchmarks.streams import StreamedRequest, longest_gap
from benchmarks.swap import Change, figures_of

OLD, NEW = "unlearn-old-g1", "unlearn-new-g2"


def request(stream: int, times: list[float], **fields: object) -> StreamedRequest:
    tokens = [(at, count) for count, at in enumerate(times, start=1)]
    began, ended = (times[0] - 0.1, times[-1]) if times else (0.0, None)
    defaults = {"model": "base", "prompt": [0] * 10, "started": began, "ended": ended}
    return StreamedRequest(stream=stream, tokens=tokens, **{**defaults, **fields})  # type: ignore[arg-type]


def change(**fields: object) -> Change:
    defaults = {"asked": 1.0, "live": 1.5, "stall_ms": 20.0, "new": NEW}
    return Change(**{**defaults, **fields})  # type: ignore[arg-type]


def test_running_requests_are_recomputed_and_others_are_not() -> None:
    requests = [
        request(0, [1.0, 1.2, 1.4, 1.9, 2.0], fingerprint=NEW),  # 10 + 3 tokens at 1.5
        request(1, [1.2, 1.3], fingerprint=OLD),  # at its end before
        request(2, [1.7, 1.8], fingerprint=NEW),  # began after
    ]
    figures = figures_of(change(), requests)
    assert figures["tokens_recomputed"] == 13
    assert figures["tokens_under_old"] == 0
    assert figures["publish_to_live_ms"] == 500
    assert figures["gap_ms"] == pytest.approx(500), "from 1.4 to 1.9"


def test_tokens_that_run_on_under_the_old_name_are_counted() -> None:
    requests = [request(0, [1.0, 1.4, 1.6, 1.8, 2.0], model="a0"), request(1, [1.0, 1.7], model="a1")]
    figures = figures_of(change(new="a1", stall_ms=None), requests)
    assert (figures["tokens_under_old"], figures["tokens_recomputed"]) == (3, 0)


def test_a_request_that_lived_through_the_next_change_too_did_not_run_on_under_the_old_one() -> None:
    requests = [request(0, [1.0, 1.4, 1.9, 3.0], fingerprint="unlearn-newer-g3")]
    figures = figures_of(change(), requests, later=[change(asked=2.0, live=2.5, new="unlearn-newer-g3")])
    assert (figures["tokens_under_old"], figures["tokens_recomputed"]) == (0, 12)


def test_each_change_counts_the_failures_until_the_next() -> None:
    failed = [request(0, [], error="refused", ended=at, started=at) for at in (0.9, 1.0, 1.6, 3.0)]
    figures = figures_of(change(new="", stall_ms=None), [*failed, request(1, [1.0, 2.0])], later=[change(asked=2.0)])
    assert figures["failed_requests"] == 2


def test_a_client_whose_request_was_cut_short_waits_for_its_next_first_token() -> None:
    cut, served = request(0, [0.8, 0.9], error="cut"), request(0, [7.0])
    refused = request(0, [], started=1.0, ended=1.0, error="refused")
    assert longest_gap([cut, refused, served], 1.0, 6.5) == 7.0 - 0.9
    assert longest_gap([cut, refused, served], 7.5, 8.0) == 0.0
