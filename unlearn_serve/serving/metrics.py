"""What this server tells Prometheus, on vLLM's own /metrics: the objects, and one function for each thing that happens.

Lives in the processes of the API servers. `docs/operations.md` lists the metrics, `docs/grafana.json` draws them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

from unlearn_serve.serving.config import SwapMode
from unlearn_serve.serving.live import PLAIN, Live
from unlearn_serve.serving.records import SwapRecord

KEPT_RELEASES = 32
"""Series that name a release (and generation) are kept for so many; those that were counted least recently go."""

ROUTE = "route"
"""Value of the label `generation` where a request named the release: that is no generation of the channel."""

Outcome = Literal["live", "drain-timeout", "refused", "undone", "broken"]
"""`drain-timeout` is live too, but what still ran after the drain was recomputed."""

AdminOutcome = Literal["admitted", "no-key", "wrong-key", "limited", "off"]

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600)


def _gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
    # One process sets them, of several API servers the first; this keeps its pid off the labels.
    return Gauge(name, text, labels, multiprocess_mode="mostrecent")


GENERATION = _gauge("unlearn_generation", "Generation of the channel that is live; 0 is the plain model.", ["channel"])
LIVE = _gauge("unlearn_live", "1 for the release and generation that are live.", ["channel", "release", "generation"])
REFUSED = _gauge("unlearn_refused", "1 while the channel's newest entry is refused.")
STORE_REACHABLE = _gauge("unlearn_store_reachable", "1 where the last look at the store succeeded.")
LAST_POLL = _gauge("unlearn_last_poll_timestamp_seconds", "Unix time of the last successful look at the channel.")

SWAPS = Counter("unlearn_swaps", "Attempts to change the live release.", ["mode", "outcome"])
REFUSALS = Counter(
    "unlearn_refusals", "Attempts to serve a release that failed: the channel's or a request's.", ["of", "error"]
)
STAGE = Histogram("unlearn_stage_seconds", "Reading, verifying and copying a release.", buckets=_SECONDS)
DRAIN = Histogram("unlearn_drain_seconds", "Waiting for running requests, mode drain.", buckets=_SECONDS)
STALL = Histogram("unlearn_stall_seconds", "No token was computed for so long in a swap.", buckets=_SECONDS)
TO_LIVE = Histogram("unlearn_publish_to_live_seconds", "From the channel's move to the flip.", buckets=_SECONDS)

TOKENS = Counter(
    "unlearn_tokens",
    "Tokens by the release that they were computed under; generation is `route` where a request named it.",
    ["release", "generation", "kind"],
)
FINISHED = Counter(
    "unlearn_finished_requests",
    "Requests that the engine finished, by the release that they ended under.",
    ["release", "generation", "reason"],
)
REQUESTS = Counter(
    "unlearn_requests", "Requests answered, by the release that they began under.", ["release", "status"]
)

ROUTES_HELD = _gauge("unlearn_routes_held", "Releases beside the channel's that the workers hold for requests.")
ROUTES_RUNNING = _gauge("unlearn_routes_running", "Releases beside the channel's with running requests.")
ROUTE_EVICTIONS = Counter("unlearn_route_evictions", "Releases that were dropped from the workers.")

ADMIN_REQUESTS = Counter("unlearn_admin_requests", "Calls of what needs the admin key.", ["outcome"])

for _mode in get_args(SwapMode):  # a series that starts at its first event hides it from increase()
    for _outcome in get_args(Outcome):
        SWAPS.labels(_mode, _outcome)
for _admin_outcome in get_args(AdminOutcome):
    ADMIN_REQUESTS.labels(_admin_outcome)

_recent: dict[Counter, OrderedDict[tuple[str, ...], set[str]]] = {
    counter: OrderedDict() for counter in (TOKENS, FINISHED, REQUESTS)
}
_live: tuple[str, str, str] | None = None


def count(counter: Counter, labels: Sequence[str], amount: float = 1) -> None:
    """Add to a series of TOKENS, FINISHED or REQUESTS, and drop those of the release counted longest ago.

    Args:
        counter: one of the three.
        labels: all of its labels; the last one has few values, those before it name a release and perhaps generation.
        amount: how much to add.
    """
    *release, last = labels
    recent = _recent[counter]
    recent.setdefault(tuple(release), set()).add(last)
    recent.move_to_end(tuple(release))
    if len(recent) > KEPT_RELEASES:
        old, lasts = recent.popitem(last=False)
        for one in lasts:
            counter.remove(*old, one)
    counter.labels(*labels).inc(amount)


def count_step(
    prompt_tokens: int, generated_tokens: int, finish_reasons: Sequence[str], *, route: str | None = None
) -> None:
    """Count what one engine step computed and finished under a release: `route`, or None for what is live."""
    live = _live[1:] if _live else (PLAIN, "0")
    release = live if route is None else (route, ROUTE)
    count(TOKENS, (*release, "prompt"), prompt_tokens)
    count(TOKENS, (*release, "generated"), generated_tokens)
    for reason in finish_reasons:
        count(FINISHED, (*release, reason))


def count_under(live: Live) -> tuple[str, str, str]:
    """Count under what is live from now on; returns the labels that name it."""
    global _live
    _live = (live.channel, live.release, str(live.generation))
    return _live


def note_live(live: Live) -> None:
    """Show what is live, and count under it, from now on; called while generation is paused."""
    if _live is not None:
        LIVE.labels(*_live).set(0)  # for a multi-process directory, which forgets nothing
        LIVE.remove(*_live)
    LIVE.labels(*count_under(live)).set(1)
    GENERATION.labels(live.channel).set(live.generation)
    REFUSED.set(0)


def note_look(*, found: bool) -> None:
    """Note a look at the channel; `found` where the store could be read."""
    STORE_REACHABLE.set(found)
    if found:
        LAST_POLL.set_to_current_time()


def note_swap(record: SwapRecord) -> None:
    """Count a swap that went live, with its times."""
    SWAPS.labels(record.mode, "drain-timeout" if record.drained is False else "live").inc()
    for histogram, milliseconds in (
        (STAGE, record.stage_ms),
        (DRAIN, record.drain_ms),
        (STALL, record.stall_ms),
        (TO_LIVE, record.publish_to_live_ms),
    ):
        if milliseconds is not None:
            histogram.observe(milliseconds / 1e3)


def note_refusal(mode: str, outcome: Outcome, error: Exception) -> None:
    """Count an attempt to make the channel's newest entry live that failed."""
    SWAPS.labels(mode, outcome).inc()
    REFUSALS.labels("channel", type(error).__name__).inc()
    REFUSED.set(1)
