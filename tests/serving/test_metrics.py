"""The metrics and their dashboard: neither may name what the other does not have, and series do not pile up."""

import asyncio
import json
import re
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY, Counter
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount

from unlearn_serve.errors import SwapError
from unlearn_serve.serving import metrics
from unlearn_serve.serving.live import Live
from unlearn_serve.serving.middleware import NameRelease
from unlearn_serve.serving.records import SwapRecord, now
from unlearn_serve.store import ChannelEntry

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
ENDINGS = re.compile(r"_(bucket|sum|count|created)$")


def exported() -> set[str]:
    """Names as Prometheus sees them: counters with _total, histograms without _bucket."""
    families = [family for family in REGISTRY.collect() if family.name.startswith("unlearn_")]
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def named_in(text: str) -> set[str]:
    return {ENDINGS.sub("", name) for name in re.findall(r"\bunlearn_[a-z_]+\b", text)} - {"unlearn_serve"}


def test_the_dashboard_draws_every_metric_and_no_other() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert named_in(" ".join(target["expr"] for panel in panels for target in panel["targets"])) == exported()


def test_operations_md_explains_every_metric_and_no_other() -> None:
    assert named_in(OPERATIONS.read_text().partition("## 6. What to watch")[2].partition("\n## ")[0]) == exported()


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter("of_the_test", "", ["release", "generation", "kind"], registry=None)
    monkeypatch.setitem(metrics._recent, counter, OrderedDict())
    return counter


def series_of(counter: Counter) -> list[tuple[str, ...]]:
    samples = counter.collect()[0].samples
    return [tuple(sample.labels.values()) for sample in samples if sample.name.endswith("_total")]


@pytest.mark.parametrize("releases", [2, 10**6], ids=["two take turns", "all differ"])
def test_series_of_what_is_long_gone_are_dropped(counter: Counter, releases: int) -> None:
    """A server that swaps every few seconds for a year must not export a million series."""
    for number in range(metrics.KEPT_RELEASES + 5):
        release = (f"r{number % releases}", str(number))
        metrics.count(counter, (*release, "prompt"))
        metrics.count(counter, (*release, "generated"), 3)
        metrics.count(counter, ("always", "0", "prompt"))

    kept = {series[1] for series in series_of(counter)}
    assert kept == {"0", *(str(number) for number in range(6, metrics.KEPT_RELEASES + 5))}
    assert len(series_of(counter)) == 2 * metrics.KEPT_RELEASES - 1, "all series of a release go with it"
    assert counter.labels("always", "0", "prompt")._value.get() == metrics.KEPT_RELEASES + 5


def test_only_one_release_is_shown_as_live_and_counted_under() -> None:
    live = Live(channel="of-the-test")
    metrics.note_live(live)
    metrics.note_refusal("drain", "undone", SwapError("x"))
    assert REGISTRY.get_sample_value("unlearn_refused") == 1

    live.move_to(_entry("a" * 64, generation=3), ("case-1",))
    metrics.note_live(live)
    metrics.count_step(5, 2, ["length", "abort"])

    labels = {"release": "a" * 64, "generation": "3"}
    (shown,) = [sample.labels for sample in metrics.LIVE.collect()[0].samples]
    assert shown == {"channel": "of-the-test", **labels}
    assert REGISTRY.get_sample_value("unlearn_generation", {"channel": "of-the-test"}) == 3
    assert REGISTRY.get_sample_value("unlearn_refused") == 0, "a newer entry is live"
    assert REGISTRY.get_sample_value("unlearn_tokens_total", {**labels, "kind": "prompt"}) == 5
    assert REGISTRY.get_sample_value("unlearn_tokens_total", {**labels, "kind": "generated"}) == 2
    for reason in ("length", "abort"):
        assert REGISTRY.get_sample_value("unlearn_finished_requests_total", {**labels, "reason": reason}) == 1


@pytest.mark.parametrize(
    ("drained", "outcome"),
    [(None, "live"), (True, "live"), (False, "drain-timeout")],
    ids=["none", "done", "late"],
)
def test_a_swap_counts_by_how_it_went_live(drained: bool | None, outcome: str) -> None:
    mode = "recompute" if drained is None else "drain"
    drain_ms = None if drained is None else 70.0
    labels = {"mode": mode, "outcome": outcome}
    before = REGISTRY.get_sample_value("unlearn_swaps_total", labels), _drains()

    metrics.note_swap(
        SwapRecord(event="swap", at=now(), channel="c", ok=True, mode=mode, drained=drained, drain_ms=drain_ms)
    )

    assert before[0] is not None, "it is there before it first happens"
    assert REGISTRY.get_sample_value("unlearn_swaps_total", labels) == before[0] + 1
    assert _drains() == before[1] + (drained is not None), "no zeros of modes that do not drain"


def test_a_broken_server_still_tells_its_watchers() -> None:
    """The one moment at which metrics matter most; every other route answers 503 then."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("reached")(scope, receive, send)

    app = Starlette(routes=[Mount("/", app=answer)])
    app.add_middleware(NameRelease)
    app.state.unlearning = SimpleNamespace(live=Live(channel="production", broken="not undone"))

    async def statuses() -> dict[str, int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            paths = ("/metrics", "/v1/unlearning/status", "/health", "/v1/completions")
            return {path: (await client.get(path)).status_code for path in paths}

    assert asyncio.run(statuses()) == {
        "/metrics": 200,
        "/v1/unlearning/status": 200,
        "/health": 503,
        "/v1/completions": 503,
    }


def _drains() -> float:
    return REGISTRY.get_sample_value("unlearn_drain_seconds_count") or 0


def _entry(release: str, *, generation: int) -> ChannelEntry:
    return ChannelEntry(
        channel="of-the-test",
        generation=generation,
        release=release,
        action="promote",
        restores_generation=None,
        at=datetime.now(UTC),
        actor="test",
        reason="",
    )
