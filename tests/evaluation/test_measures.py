"""What sets of scores say about a model, on scores made up for it."""

import numpy as np
import pytest
from evaluation.made_up import scores

from unlearn_serve.evaluation.bootstrap import interval
from unlearn_serve.evaluation.measures import Reference, measure


def test_means_over_a_set() -> None:
    rows = [scores(probability=0.5), scores(probability=0.25, correct=False, exact_match=False)]
    found = measure({"forget": rows}, seed=0)
    assert (found["forget.probability"].value, found["forget.accuracy"].value) == (0.375, 0.5)
    assert found["forget.exact_match"].samples == 2
    assert 0.25 <= found["forget.probability"].low <= found["forget.probability"].high <= 0.5


def test_lm_loss_is_per_token_not_per_row() -> None:
    rows = [scores(loss=1.0, tokens=1), scores(loss=3.0, tokens=3)]
    assert measure({"general": rows}, seed=0)["general.lm_loss"].value == pytest.approx(10 / 4)


def test_truth_ratios_count_where_rows_have_them_and_by_what_the_set_is_for() -> None:
    rows = [scores(truth_ratio=4.0, normalised_probability=0.2), scores(), scores(truth_ratio=0.5)]
    found = measure({"forget": rows, "retain": rows}, seed=0)
    assert found["forget.truth_ratio"].value == pytest.approx((0.25 + 0.5) / 2)
    assert found["retain.truth_ratio"].value == pytest.approx((0 + 0.5) / 2)
    assert found["forget.truth_ratio"].samples == 2
    assert "holdout.truth_ratio" not in found
    assert "forget.truth_ratio" not in measure({"forget": [scores()]}, seed=0)


def test_membership_needs_a_hold_out_and_tells_the_leak_against_the_reference() -> None:
    forget = [scores(loss=1.0, min_k=1.0), scores(loss=3.0, min_k=3.0)]
    holdout = [scores(loss=2.0, min_k=2.0), scores(loss=3.0, min_k=3.0)]
    assert not any(name.startswith(("mia", "privacy")) for name in measure({"forget": forget}, seed=0))
    found = measure({"forget": forget, "holdout": holdout}, seed=0)
    assert found["mia_loss"].value == found["mia_min_k"].value == 2.5 / 4
    assert found["privacy_leak"].value == pytest.approx((0.375 - 0.5) / 0.5)
    assert "mia_min_k_plus_plus" not in found, "no source told it"
    compared = Reference(truth_ratios=[], attack_area=0.625)
    assert measure({"forget": forget, "holdout": holdout}, seed=0, reference=compared)["privacy_leak"].value == 0.0


def test_forget_quality_needs_a_reference() -> None:
    rows = [scores(truth_ratio=ratio) for ratio in (1.0, 2.0, 3.0)]
    assert "forget_quality" not in measure({"forget": rows}, seed=0)
    far = Reference(truth_ratios=[7.0, 8.0, 9.0], attack_area=None)
    assert measure({"forget": rows}, seed=0, reference=far)["forget_quality"].value == pytest.approx(0.1)


def test_model_utility_of_retain_and_general() -> None:
    retain = [scores(probability=0.5, rouge_l=1.0, truth_ratio=0.5, normalised_probability=0.9)]
    general = [scores(probability=0.1, rouge_l=1.0, truth_ratio=0.0, normalised_probability=0.5)]
    # 0.5, 1, 0.5 of retain (its probability as it is), 0.5 (normalised), 1, 1 of general; forget counts for nothing.
    found = measure({"retain": retain, "general": general, "forget": [scores(rouge_l=0.0)]}, seed=0)
    assert found["model_utility"].value == pytest.approx(6 / (2 + 1 + 2 + 2 + 1 + 1))


def test_intervals_are_seeded_and_cover() -> None:
    values = np.random.default_rng(0).normal(size=200)

    def mean(index: np.ndarray) -> np.ndarray:
        return values[index].mean(-1)

    low, high = interval(mean, [200], seed=1)
    assert (low, high) == interval(mean, [200], seed=1) != interval(mean, [200], seed=2)
    # The normal interval of a mean: +- 1.96 s / sqrt(n). A percentile bootstrap of 1000 comes within a tenth of it.
    half = 1.96 * values.std() / 200**0.5
    assert high - values.mean() == pytest.approx(half, rel=0.15)
    assert values.mean() - low == pytest.approx(half, rel=0.15)
    assert interval(mean, [1], seed=0) is None
