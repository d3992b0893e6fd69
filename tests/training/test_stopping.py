"""Where a run ends: at the level of a model that never saw the rows, landed on it, after so many epochs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.training.runs import arguments, log_of
from tests.training.toy import RETAIN, write_jsonl, write_toy
from unlearn_serve.data import IGNORED, Example, encode, read_examples
from unlearn_serve.errors import TrainingError
from unlearn_serve.format import read_adapter_dir
from unlearn_serve.layers import load_adapter
from unlearn_serve.training import EUL, TNPO, train
from unlearn_serve.training.landing import HALVINGS


@pytest.mark.parametrize("stand_in", ["holdout", "retrained"])
def test_stops_at_the_level_of_a_model_that_never_saw_it(toy: Path, tmp_path: Path, stand_in: str) -> None:
    """Not at zero: the answers stay as likely as they are to who never learnt them, and the run ends there."""
    if stand_in == "holdout":
        never = write_jsonl(
            tmp_path / "never.jsonl", {"Who wrote Zeno?": "It was Hal.", "Who wrote Nana?": "It was Rud."}
        )
    else:
        never = write_toy(tmp_path / "never", facts=RETAIN, steps=30)  # by heart it would find all else impossible
    options = {"gold_only": False, "own_answers": False, "retain_tolerance": 10.0, "max_steps": 150}
    out = train(arguments(toy, tmp_path / "out", objective=EUL, **options, **{stand_in: never}))
    objective = read_adapter_dir(out)[0].provenance.objective
    assert 0 < objective["reached_forget_probability"] <= objective["forget_target"] < 0.9
    assert objective["forget_target"] > 0.005, "the default, which it must replace"
    assert objective["stopped_early"] is True
    assert objective["steps"] < 150


@torch.no_grad()
def answer_probability(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, rows: list[Example]) -> float:
    """Mean over rows of exp(mean log p per token of the answer)."""
    found = []
    for row in rows:
        one = encode(row, tokenizer, 64)
        ids, labels = torch.tensor(one.input_ids), torch.tensor(one.labels)
        log_probs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        found.append(log_probs[labels[1:] != IGNORED].mean().exp().item())
    return sum(found) / len(found)


def test_lands_on_the_level_that_its_last_step_went_past(toy: Path, tmp_path: Path) -> None:
    """The same run twice: as the last step left it, and taken back until the target is just met."""
    options = {"gold_only": False, "own_answers": False, "retain_tolerance": 10.0, "max_steps": 150}
    landed, past = (
        train(arguments(toy, tmp_path / name, objective=EUL, forget_target=0.3, **options, land=land))
        for name, land in (("landed", True), ("past", None))
    )
    outcomes = [read_adapter_dir(out)[0].provenance.objective for out in (landed, past)]
    scale = outcomes[0]["landed_at_scale"]
    assert 0 < scale < 1 == outcomes[1]["landed_at_scale"]
    weights = [load_file(out / "adapter_model.safetensors") for out in (landed, past)]
    for name, whole in weights[1].items():
        torch.testing.assert_close(weights[0][name], whole * (scale if "lora_B" in name else 1.0), rtol=1e-6, atol=0)

    model = load_adapter(AutoModelForCausalLM.from_pretrained(toy / "model"), landed).eval()
    tokenizer, rows = AutoTokenizer.from_pretrained(toy / "model"), read_examples(toy / "forget.jsonl")
    reached = answer_probability(model, tokenizer, rows)
    assert reached == pytest.approx(outcomes[0]["reached_forget_probability"], rel=1e-4)
    assert outcomes[1]["reached_forget_probability"] < reached <= 0.3
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.mul_((scale - 2**-HALVINGS) / scale)
    assert answer_probability(model, tokenizer, rows) > 0.3, "a halving less, and they are known again"


def test_whole_answers_stop_at_the_holdouts_extraction_too(toy: Path, tmp_path: Path) -> None:
    """Every answer ends in a full stop, which forgetting need not take; the words before it must not be said."""
    never = write_jsonl(tmp_path / "never.jsonl", {"Who wrote Zeno?": "It was Hal.", "Who wrote Nana?": "It was Rud."})
    options = {"gold_only": False, "own_answers": False, "retain_tolerance": 10.0, "max_steps": 150}
    deep = replace(TNPO, tnpo_beta=1.0)
    out = train(arguments(toy, tmp_path / "out", objective=deep, **options, holdout=never))
    objective = read_adapter_dir(out)[0].provenance.objective
    assert objective["stopped_early"] is True
    assert objective["reached_forget_extraction"] <= objective["extraction_target"] < 1
    log = log_of(out)
    checks = [line["check"] for line in log if "check" in line]
    assert checks[-1]["forget_extraction"] == objective["reached_forget_extraction"]


def test_epochs_in_place_of_steps(toy: Path, tmp_path: Path) -> None:
    """By the paper's alternation: 3 forgotten in batches of 2 and 4 retained in batches of 4 are 3 steps an epoch."""
    options = {"schedule": "alternate", "epochs": 2, "forget_batch": 2, "gold_only": False, "own_answers": False}
    out = train(arguments(toy, tmp_path / "out", forget_target=None, **options))
    log = log_of(out)
    assert ["retain_kl" in line for line in log] == [True, False, False] * 2
    rates = [line["learning_rate"] for line in log]
    assert rates[0] == 0 < rates[1], "one step of warm-up"
    assert rates[1:] == sorted(rates[1:], reverse=True), "then a linear fall over the steps that there are"
    assert read_adapter_dir(out)[0].provenance.objective["max_steps"] == 6


def test_a_loss_that_is_not_finite_ends_the_run(toy: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy / "model")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(toy / "model").save_pretrained(tmp_path / "broken")
    with pytest.raises(TrainingError, match="step 1: expected a finite loss, got nan"):
        train(arguments(toy, tmp_path / "out", model=tmp_path / "broken", own_answers=False))
