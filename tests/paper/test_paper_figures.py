"""What the figures mean: judged against the re-trained model, rounded weights, bars, and a page of what is there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.paper.bars import bars
from benchmarks.paper.experiments.judging import judged, mean_interval
from benchmarks.paper.experiments.robustness import quantise
from benchmarks.paper.page.render import render
from benchmarks.paper.plan import plan
from benchmarks.paper.sizes import FULL, QUICK
from benchmarks.paper.summary import KEPT, write_summary


def test_a_request_is_forgotten_below_the_interval_and_inside_it_only_within() -> None:
    """Both levels count, and each request against its own interval."""
    rows = {"forget": {"probability": [0.2, 0.2, 0.01, 0.01, 0.9, 0.9], "extraction_strength": [0.1] * 6}}
    bounds = {"probability": [(0.1, 0.3)] * 3, "extraction_strength": [(0.05, 0.2)] * 3}
    found = judged(rows, bounds, step=3, per=2)
    assert (found["forgotten"], found["within_interval"]) == (2, 1)
    assert found["forget_probability"] == pytest.approx(0.37)
    rows["forget"]["extraction_strength"] = [0.5] * 6
    assert judged(rows, bounds, step=3, per=2)["forgotten"] == 0


def test_an_interval_holds_its_mean() -> None:
    low, high = mean_interval([0.0, 0.2, 0.4, 0.9])
    assert low < 0.375 < high
    assert mean_interval([0.3]) == (0.3, 0.3)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_are_off_by_half_a_step_and_layers_stay(bits: int) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"mlp": nn.Linear(128, 4), "unlearn": nn.Linear(128, 4), "lm_head": nn.Linear(128, 4)})
    before = {name: module.weight.detach().clone() for name, module in model.items()}
    quantise(model, bits, group=64)
    for name in ("unlearn", "lm_head"):
        assert torch.equal(model[name].weight, before[name])
    groups = before["mlp"].view(4, 2, 64)
    step = groups.abs().amax(-1) / (2 ** (bits - 1) - 1)
    gap = (model["mlp"].weight.view(4, 2, 64) - groups).abs().amax(-1)
    assert (gap <= step / 2 + 1e-6).all()
    assert (gap > 0).all()
    levels = (model["mlp"].weight.view(4, 2, 64) / step[..., None]).round().unique()
    assert len(levels) <= 2**bits


def test_bars_hold_only_inside_the_interval(tmp_path: Path) -> None:
    """An answer that is less likely than in the re-trained model misses the bar too."""
    _write_tofu(tmp_path, forgotten=0.2)
    verdicts = {one.what: one.holds for one in bars(write_summary(tmp_path))}
    assert verdicts["TOFU, 1 author: probability of what was forgotten"] is True
    assert verdicts["TOFU, 1 author: retained probability over original"] is True
    assert verdicts["re-training over unlearning 1 author, seconds"] is True
    assert verdicts["naive training step over ours, seconds"] is None
    _write_tofu(tmp_path, forgotten=0.01)
    verdicts = {one.what: one.holds for one in bars(write_summary(tmp_path))}
    assert verdicts["TOFU, 1 author: probability of what was forgotten"] is False


def test_a_first_request_has_a_ratio_of_its_own_and_no_bar(tmp_path: Path) -> None:
    _write_tofu(tmp_path, forgotten=0.2)
    summary = write_summary(tmp_path)
    assert (summary["speedup_over_retrain"], summary["speedup_of_first_request"]) == (20.0, 8.0)
    assert next(one for one in bars(summary) if "first request" in one.what).verdict == "measured"


def test_seconds_of_two_machines_give_no_ratio(tmp_path: Path) -> None:
    """One name stands for CPUs with and without AVX-512."""
    _write_tofu(tmp_path, forgotten=0.2)
    path = tmp_path / "tofu" / "retrained1.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "machine": {"cpu": "One", "instructions": ["avx2"]}}))
    assert write_summary(tmp_path)["speedup_over_retrain"] is None


def test_a_measure_that_the_original_has_nothing_of_gives_no_ratio(tmp_path: Path) -> None:
    _write_tofu(tmp_path, forgotten=0.2, retained=0.0)
    summary = write_summary(tmp_path)
    assert summary["tofu_forget1"]["utility_over_original"] is None
    assert "holds" not in {one.verdict for one in bars(summary) if "over original" in one.what}


def test_a_page_of_nothing_says_so(tmp_path: Path) -> None:
    render(tmp_path / "results", tmp_path / "results.md", FULL)
    page = (tmp_path / "results.md").read_text()
    assert "not measured" in page
    assert "holds" not in page


@pytest.mark.parametrize("sizes", [FULL, QUICK], ids=["full", "quick"])
def test_settings_of_every_stage_are_json(sizes: Any) -> None:
    """A digest that cannot be taken, or that leaves out what a method is told, would only show after hours."""
    stages = plan(sizes)
    for stage in stages:
        assert json.loads(json.dumps(stage.config)) == stage.config
    by_name = {stage.name: stage for stage in stages}
    ablated = by_name["imdb/ablation/without-lm-seed0"].config["settings"]["settings"]["objective"]
    assert ablated["forget_lm"] == 0.0
    assert ablated["forget_kl"] == 1.0


def _write_tofu(results: Path, *, forgotten: float, retained: float = 0.98) -> None:
    def measured(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    levels = ("forget.probability", "forget.extraction_strength", *KEPT.values())

    def write(name: str, result: dict[str, Any]) -> None:
        path = results / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"result": result, "machine": {"cpu": "One", "instructions": ["avx512f"]}}))

    def of(forget: float) -> dict[str, dict[str, float]]:
        return {name: measured(forget if name.startswith("forget") else retained) for name in levels}

    write("tofu/original", {"measures": {"1": of(0.95)}})
    write("tofu/retrained1", {"measures": of(0.2), "accounting": {"seconds": 600.0}})
    details = {"first_request_seconds": 75.0}
    write(
        "tofu/forget1/eul-bounded-seed0",
        {"measures": of(forgotten), "accounting": {"seconds": 30.0}, "details": details},
    )
