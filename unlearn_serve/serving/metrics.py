"""What this server tells Prometheus, on vLLM's own /metrics: the objects, and one function for each thing that happens.

Lives in the API server's process. `docs/operations.md` lists the metrics, `docs/grafana.json` draws them.
"""

from collections import OrderedDict
from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

from unlearn_serve.serving.live import Live
from unlearn_serve.serving.records import SwapRecord

KEPT_RELEASES = 32
"""Series that name a release are kept for so many of them; those that were counted least recently go."""

_MOMENTS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

GENERATION = Gauge("unlearn_generation", "Generation of the channel that is live; 0 is the plain model.", ["channel"])
LIVE = Gauge("unlearn_live", "1 for the release that is live.", ["channel", "release"])
TOKENS = Counter(
    "unlearn_tokens",
    "Tokens computed, by the channel's release that was live; those of requests that name a release included.",
    ["release", "generation", "kind"],
)
REQUESTS = Counter(
    "unlearn_requests", "Requests answered, by the release that they began under.", ["release", "status"]
)
SWAPS = Counter("unlearn_swaps", "Attempts to change the live release.", ["mode", "outcome"])
STAGE = Histogram("unlearn_stage_seconds", "Reading, verifying and copying a release.", buckets=_MOMENTS)
DRAIN = Histogram("unlearn_drain_seconds", "Waiting for running requests, mode drain.", buckets=_MOMENTS)
STALL = Histogram("unlearn_stall_seconds", "No token was computed for so long in a swap.", buckets=_MOMENTS)
TO_LIVE = Histogram("unlearn_publish_to_live_seconds", "From the channel's move to the flip.", buckets=_MOMENTS)
REFUSALS = Counter("unlearn_refusals", "Releases that were not served, of the channel or named by a request.", ["of"])
STORE_REACHABLE = Gauge("unlearn_store_reachable", "1 where the last look at the store succeeded.")
LAST_POLL = Gauge("unlearn_last_poll_timestamp_seconds", "Unix time of the last successful look at the channel.")
ROUTES_HELD = Gauge("unlearn_routes_held", "Releases beside the channel's that the workers hold for requests.")
ROUTES_RUNNING = Gauge("unlearn_routes_running", "Releases beside the channel's with running requests.")
ROUTE_EVICTIONS = Counter("unlearn_route_evictions", "Releases that were dropped from the workers.")

_recent: dict[Counter, OrderedDict[tuple[str, ...], None]] = {TOKENS: OrderedDict(), REQUESTS: OrderedDict()}
_live_labels: tuple[str, str] | None = None


def count(counter: Counter, labels: Sequence[str], amount: float = 1) -> None:
    """Add `amount` to the series `labels` of TOKENS or REQUESTS, and drop the series of long-gone releases."""
    recent = _recent[counter]
    recent[tuple(labels)] = None
    recent.move_to_end(tuple(labels))
    releases = list(dict.fromkeys(series[0] for series in reversed(recent)))
    for series in [series for series in recent if series[0] in releases[KEPT_RELEASES:]]:
        del recent[series]
        counter.remove(*series)
    counter.labels(*labels).inc(amount)


def name_live(live: Live) -> None:
    """Show what is live from now on."""
    global _live_labels
    if _live_labels is not None:
        LIVE.remove(*_live_labels)
    _live_labels = (live.channel, live.release)
    LIVE.labels(*_live_labels).set(1)
    GENERATION.labels(live.channel).set(live.generation)


def count_swap(record: SwapRecord) -> None:
    """Count a swap that went live, with its times."""
    SWAPS.labels(record.mode, "live").inc()
    for histogram, milliseconds in (
        (STAGE, record.stage_ms),
        (STALL, record.stall_ms),
        (TO_LIVE, record.publish_to_live_ms),
        (DRAIN, record.drain_ms if record.mode == "drain" else None),
    ):
        if milliseconds is not None:
            histogram.observe(milliseconds / 1e3)
