"""Layers that land are taken out of the way of what retained rows read, where that moves retained answers less."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.runs import arguments
from unlearn_serve.errors import TrainingError
from unlearn_serve.format import read_adapter_dir
from unlearn_serve.fusion.grams import GramFile
from unlearn_serve.training import EUL, GRAD_DIFF, train

OPTIONS: dict[str, Any] = {
    "forget_target": 0.3,
    "gold_only": False,
    "own_answers": False,
    "retain_tolerance": 10.0,
    "max_steps": 150,
}


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


def outcome_of(out: Path) -> dict[str, Any]:
    return dict(read_adapter_dir(out)[0].provenance.objective)


@pytest.fixture(scope="module")
def runs(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One training three times: as its last step left it, landed, and spared and landed."""
    folder = tmp_path_factory.mktemp("runs")
    ends: dict[str, dict[str, bool]] = {"past": {}, "landed": {"land": True}, "spared": {"land": True, "spare": True}}
    return {
        name: train(arguments(toy, folder / name, objective=GRAD_DIFF, **OPTIONS, **end)) for name, end in ends.items()
    }


def test_is_the_least_squares_between_the_layer_and_none(runs: dict[str, Path]) -> None:
    """W' = W F (F + R)^-1, out of the Grams that the run which ended before it wrote down."""
    past, spared = weights_of(runs["past"]), weights_of(runs["spared"])
    scale, sites = outcome_of(runs["spared"])["landed_at_scale"], read_adapter_dir(runs["past"])[0].adapter.sites
    grams = GramFile(runs["past"] / "grams.safetensors", sites, rank=8, hidden_size=48)
    names = sorted(name for name in past if "lora_B" in name)
    for name, (_, gram) in zip(names, sorted(grams.items()), strict=True):
        assert gram.retained is not None
        f, r = (g.up.double() for g in (gram, gram.retained))
        ridge = 1e-4 / len(f) * torch.eye(len(f), dtype=torch.float64)
        f, r = f / f.trace() + ridge, r / r.trace() + ridge
        expected = torch.linalg.solve(f + r, f @ past[name].double().T).T
        torch.testing.assert_close(spared[name].double(), scale * expected, rtol=1e-3, atol=1e-6)
        assert not torch.allclose(spared[name], scale * past[name], rtol=0.05)
    for name in set(past) - set(names):
        assert torch.equal(past[name], spared[name]), "W_down stays"


def test_retained_answers_move_less_where_as_much_is_forgotten(runs: dict[str, Path]) -> None:
    landed, spared = outcome_of(runs["landed"]), outcome_of(runs["spared"])
    assert (landed["spared"], spared["spared"], spared["spare"]) == (False, True, True)
    for one in (landed, spared):
        assert 0.2 < one["reached_forget_probability"] <= 0.3
    assert spared["reached_retain_kl"] < 0.95 * landed["reached_retain_kl"]


def test_layers_stay_as_trained_where_that_is_better(toy: Path, tmp_path: Path) -> None:
    """Eight features of a toy model do not always tell forgotten rows from others."""
    landed, tried = (
        train(arguments(toy, tmp_path / str(spare), objective=EUL, **OPTIONS, land=True, spare=spare))
        for spare in (False, True)
    )
    assert outcome_of(tried)["spared"] is False
    for name, weight in weights_of(landed).items():
        assert torch.equal(weights_of(tried)[name], weight)


@pytest.mark.parametrize(
    ("given", "spares"),
    [
        ({"holdout": Path("never.jsonl")}, True),
        ({"holdout": Path("never.jsonl"), "spare": False}, False),
        ({"holdout": Path("never.jsonl"), "land": False}, False),
        ({"holdout": Path("never.jsonl"), "retain": None}, False),
        ({"land": True}, False),
        ({"land": True, "spare": True}, True),
    ],
)
def test_by_default_where_the_level_is_another_models(
    toy: Path, tmp_path: Path, given: dict[str, Any], spares: bool
) -> None:
    assert arguments(toy, tmp_path / "out", **given).spares is spares


def test_asked_for_without_landing_is_refused(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="spare: expected layers that land, got none"):
        arguments(toy, tmp_path / "out", spare=True)
