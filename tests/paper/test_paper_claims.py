"""How a statement of the paper's is held against results."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper.checks import above, at_least, below
from benchmarks.paper.claims import CLAIMS

CLAIM = {claim.name: claim for claim in CLAIMS}


def write(results: Path, name: str, result: dict[str, Any], **config: Any) -> None:
    path = results / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"result": result, "config": config}))


def accuracies(forgot: float, retained: float = 1.0, test: float = 0.8) -> dict[str, Any]:
    return {name: {"accuracy": value} for name, value in (("forgot", forgot), ("retained", retained), ("test", test))}


def test_an_order_says_both_figures_and_nothing_without_one() -> None:
    assert below(0.1, 0.2, " %", 100) == (True, "10 % against 20 %")
    assert [order(0.2, 0.2)[0] for order in (below, above, at_least)] == [False, False, True]  # type: ignore[index]
    assert (below(None, 0.2), above(0.1, None)) == (None, None)


def test_a_statement_is_not_judged_before_its_stages_have_run(tmp_path: Path) -> None:
    assert [claim.name for claim in CLAIMS if claim.check(tmp_path) is not None] == []


@pytest.mark.parametrize(("eul", "holds"), [(0.5, True), (0.9, False), (0.95, False)])
def test_over_forgetting_is_below_the_re_trained_model(tmp_path: Path, eul: float, holds: bool) -> None:
    write(tmp_path, "imdb/forget10/eul-seed0", accuracies(eul))
    write(tmp_path, "imdb/forget10/retrain-seed0", accuracies(0.9))
    found = CLAIM["over-forgets"].check(tmp_path)
    assert found == (holds, f"{100 * eul:.3g} % against 90 %")


def test_the_method_that_forgets_most_is_named(tmp_path: Path) -> None:
    for name, forgot in {"eul": 0.5, "retrain": 0.9, "finetune": 1, "sisa": 0.8, "reverse-gradient": 0.6}.items():
        write(tmp_path, f"imdb/forget10/{name}-seed0", accuracies(forgot))
    assert CLAIM["forgets-most"].check(tmp_path) is None, "MEND has not run"
    write(tmp_path, "imdb/forget10/mend-like-seed0", accuracies(0.4))
    assert CLAIM["forgets-most"].check(tmp_path) == (False, "50 % against 40 % (mend-like)")


def test_a_term_left_out_is_held_against_the_whole_at_the_ablations_share(tmp_path: Path) -> None:
    write(tmp_path, "imdb/ablation/without-kl-seed0", accuracies(0.9), share=0.1)
    write(tmp_path, "imdb/forget1/eul-seed0", accuracies(0.95))
    assert CLAIM["without-kl"].check(tmp_path) is None
    write(tmp_path, "imdb/forget10/eul-seed0", accuracies(0.8))
    assert CLAIM["without-kl"].check(tmp_path) == (True, "90 % against 80 %")


def test_fused_layers_are_held_against_the_layer_trained_on(tmp_path: Path) -> None:
    one = {"retained_over_original": 0.9, "forget_probability": 0.2}
    fused = {"retained_over_original": 0.95, "forget_probability": 0.3}
    steps = {
        name: {"3": found} for name, found in (("trained-on", one), ("regmean", fused), ("regmean-published", one))
    }
    write(tmp_path, "tofu/sequence/summary", steps)
    held = {name: CLAIM[name].check(tmp_path) for name in ("fused-keeps", "fused-forgets", "published-keeps")}
    assert [found is not None and found[0] for found in held.values()] == [True, False, False]


@pytest.mark.parametrize(("eul", "holds"), [(0.56, True), (0.54, False), (0.44, True), (0.46, False)])
def test_an_attack_succeeds_on_either_side_of_a_half(tmp_path: Path, eul: float, holds: bool) -> None:
    for name, area in (("eul", eul), ("retrain", 0.45)):
        write(tmp_path, f"imdb/forget10/{name}-seed0", {"measures": {"mia_loss": {"value": area}}})
    found = CLAIM["attack"].check(tmp_path)
    assert found == (holds, f"AUC {eul:.3f} against 0.450")


@pytest.mark.parametrize(("eul", "holds"), [(50.0, True), (150.0, False)])
def test_faster_says_how_many_times(tmp_path: Path, eul: float, holds: bool) -> None:
    for name, seconds in (("eul", eul), ("retrain", 100.0)):
        write(tmp_path, f"imdb/mislabelled/{name}-seed0", {"accounting": {"seconds": seconds}})
    assert CLAIM["faster"].check(tmp_path) == (holds, f"{eul:.0f} s against 100 s, {100 / eul:.1f} times")


def test_without_lm_is_held_against_the_original(tmp_path: Path) -> None:
    write(tmp_path, "imdb/ablation/without-lm-seed0", accuracies(0.9), share=0.1)
    write(tmp_path, "imdb/original", {"forget": {"10": accuracies(1.0)}})
    assert CLAIM["without-lm-forgets"].check(tmp_path) == (True, "90 % against 100 %")


def test_mend_is_held_against_the_lowest_of_all_others(tmp_path: Path) -> None:
    for name, test in {"eul": 0.8, "retrain": 0.9, "finetune": 0.7, "sisa": 0.8, "reverse-gradient": 0.8}.items():
        write(tmp_path, f"imdb/forget10/{name}-seed0", accuracies(0.5, test=test))
    write(tmp_path, "imdb/forget10/mend-like-seed0", accuracies(0.5, test=0.75))
    assert CLAIM["mend"].check(tmp_path) == (False, "75 % against 70 %")
