"""The metrics and their dashboard: neither may name what the other does not have, and series do not pile up."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, Counter

from unlearn_serve.serving import metrics

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


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    from collections import OrderedDict

    counter = Counter("of_the_test", "", ["release", "kind"], registry=None)
    monkeypatch.setitem(metrics._recent, counter, OrderedDict())
    return counter


def releases_of(counter: Counter) -> list[str]:
    return [sample.labels["release"] for sample in counter.collect()[0].samples if sample.name.endswith("_total")]


def test_series_of_releases_that_are_long_gone_are_dropped(counter: Counter) -> None:
    """A server that swaps every few seconds for a year must not export a million series."""
    for number in range(metrics.KEPT_RELEASES + 5):
        metrics.count(counter, (f"r{number}", "prompt"))
        metrics.count(counter, (f"r{number}", "generated"), 3)
        metrics.count(counter, ("always", "prompt"))
    kept = releases_of(counter)
    assert len(set(kept)) == metrics.KEPT_RELEASES
    assert "always" in kept
    assert "r0" not in kept
    assert f"r{metrics.KEPT_RELEASES + 4}" in kept
    assert counter.labels("always", "prompt")._value.get() == metrics.KEPT_RELEASES + 5
