"""The attacks: what is relearned from and what is asked then never meet, and all weights are trained."""

import pytest
import torch

from benchmarks.paper.data.tofu import Tofu
from benchmarks.paper.experiments.robustness import parted, relearn
from tests.paper.baselines.tasks import gold_probability, rows
from tests.training.toy import FORGET, toy_model, toy_tokenizer
from unlearn_serve.data import Example
from unlearn_serve.layers import add_adapter


def authors(count: int, per: int) -> Tofu:
    requested = tuple(
        tuple(Example(prompt=f"{n}.{i}", completion="x", answer="x") for i in range(per)) for n in range(count)
    )
    return Tofu(requested=requested, rephrased=requested, guards=(), holdout=(), general=())


def test_rows_are_shown_of_the_authors_in_turn_and_the_others_are_asked() -> None:
    for few in (1, 3, 4):
        shown, others = parted(authors(3, 4), 2, few)
        assert [row.prompt for row in shown] == ["0.0", "1.0", "0.1", "1.1"][:few]
        assert [row.prompt for row in others] == ["0.2", "0.3", "1.2", "1.3"], "the same, however many are shown"
    with pytest.raises(ValueError, match="expected at most 4 rows, half of each author's, got 5"):
        parted(authors(3, 4), 2, 5)


def test_relearning_trains_every_weight_and_what_is_shown_comes_back() -> None:
    model = add_adapter(toy_model(blocks=2), rank=4)
    for name, weight in model.named_parameters():
        if "unlearn" in name:  # W_up starts at 0, and W_down would then get no gradient in the first step
            torch.nn.init.normal_(weight, std=0.1)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    shown = rows(FORGET)
    unknown = gold_probability(model.eval(), shown)
    relearn(model, toy_tokenizer(), shown, learning_rate=1e-2, steps=80)
    assert min(gold_probability(model, shown)) > 0.9 > max(unknown)
    assert [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])] == []
    assert not any(weight.requires_grad for weight in model.parameters())
