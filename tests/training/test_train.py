"""Whole training runs on a model that knows a handful of facts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.training.runs import FAST, answers, arguments, log_of
from tests.training.toy import FORGET, RETAIN, rows, toy_model, toy_tokenizer, write_toy
from unlearn_serve.data import read_examples
from unlearn_serve.errors import TrainingError
from unlearn_serve.format import fingerprint_base_model, read_adapter_dir
from unlearn_serve.fusion.grams import GramFile
from unlearn_serve.layers import load_adapter
from unlearn_serve.training import BAD_TEACHER, EUL, IDK, RECIPES, RMU, SIMNPO, TNPO, Objective, train
from unlearn_serve.training.answers import own_answers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": EUL, "retain_tolerance": 0.05},
        {"schedule": "alternate", "max_steps": 120},
        {"activation": "relu", "blocks": (2, 3), "cache_mb": 0},
        {"objective": SIMNPO},
        {"objective": TNPO},
        {"objective": RMU, "retain_tolerance": 0.05, "max_steps": 120},
    ],
    ids=["default", "EUL", "alternate", "nothing kept", "SimNPO", "TNPO", "RMU"],
)
def test_forgets_what_it_should_and_nothing_else(toy: Path, tmp_path: Path, options: dict[str, object]) -> None:
    assert all(answers(toy, "forget", None))
    assert all(answers(toy, "retain", None))
    out = train(arguments(toy, tmp_path / "out", **options))
    assert not any(answers(toy, "forget", out))
    assert all(answers(toy, "retain", out))


@pytest.mark.parametrize("on_text", [True, False])
def test_the_lm_loss_reads_whole_rows_or_answers(toy: Path, tmp_path: Path, on_text: bool) -> None:
    options = {"objective": Objective(forget_lm=1.0), "gold_only": False, "own_answers": False, "forget_target": None}
    out = train(arguments(toy, tmp_path / "out", **options, lm_on_text=on_text, max_steps=1))

    model = AutoModelForCausalLM.from_pretrained(toy / "model")
    losses = []
    for row in rows(FORGET):
        prompt = len(toy_tokenizer()(row["prompt"]).input_ids)
        tokens = torch.tensor(toy_tokenizer()(f"{row['prompt']}{row['completion']}</s>").input_ids)
        with torch.no_grad():
            each = F.cross_entropy(model(input_ids=tokens[None]).logits[0, :-1], tokens[1:], reduction="none")
        losses.append(each[:-1].mean() if on_text else each[prompt - 1 :].mean())
    assert log_of(out)[0]["forget_lm"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    assert read_adapter_dir(out)[0].provenance.objective["lm_on_text"] is on_text


def test_what_a_run_writes(toy: Path, tmp_path: Path) -> None:
    out = train(arguments(toy, tmp_path / "out", deletion_ids=("b", "a"), forget_target=0.05))
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "grams.safetensors",
        "manifest.json",
        "training_log.jsonl",
    ]
    manifest, tensors = read_adapter_dir(out)
    assert manifest.deletion_ids == ("a", "b")
    assert manifest.adapter.sites == {2: "model.layers.2.mlp", 3: "model.layers.3.mlp"}, "the upper half by default"
    assert tensors.w_down[3].shape == (8, 48)
    assert manifest.provenance.data["forget"].rows == 3
    assert manifest.provenance.data["retain"].rows == 4
    assert manifest.provenance.command == ["unlearn-serve", "train"]
    objective = manifest.provenance.objective
    assert objective["stopped_early"] is True
    assert objective["forget_npo"] == 1.0
    assert objective["retain_kl"] == 4.0, "the weight, not the level that was reached"
    assert 0 < objective["steps"] < FAST["max_steps"]
    grams = GramFile(out / "grams.safetensors", manifest.adapter.sites, rank=8, hidden_size=48)
    for gram in grams.values():
        for matrix in (gram.down, gram.up, gram.retained.down, gram.retained.up):
            assert matrix.diagonal().sum() > 0
            torch.testing.assert_close(matrix, matrix.T)
            assert torch.linalg.eigvalsh(matrix).min() > -1e-3

    log = log_of(out)
    steps = [line for line in log if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, objective["steps"] + 1))
    assert {"forget_npo", "retain_kl", "forget_probability", "retain_probability", "seconds"} <= set(steps[0])
    assert steps[0]["forget_probability"] > 0.5 > 0.05 >= steps[-1]["forget_probability"]
    last_check = [line["check"] for line in log if "check" in line][-1]
    assert last_check["forget_probability"] == objective["reached_forget_probability"] <= 0.05
    assert last_check["retain_kl"] == objective["reached_retain_kl"] <= 0.01


def test_idk_teaches_the_refusal(toy: Path, tmp_path: Path) -> None:
    """In all blocks: what the answer is about is not known in this model's upper half before the name itself."""
    settings = RECIPES["idk"].settings
    options = {
        "objective": replace(IDK, retain_kl=2.0),
        "refusal": "No.",
        "depth": (0.0, 1.0),
        "rank": 32,
        "max_steps": 160,
    }
    out = train(arguments(toy, tmp_path / "out", **settings, **options))
    model = load_adapter(AutoModelForCausalLM.from_pretrained(toy / "model"), out)
    tokenizer = AutoTokenizer.from_pretrained(toy / "model")
    said = own_answers(model, tokenizer, read_examples(toy / "forget.jsonl"), max_new_tokens=16)
    assert [one.completion for one in said] == ["No."] * 3
    assert all(answers(toy, "retain", out))


def test_bad_teacher_imitates_the_model_that_never_saw(toy: Path, tmp_path: Path) -> None:
    never = write_toy(tmp_path / "never", facts=RETAIN, steps=60)
    options = {"gold_only": False, "own_answers": False, "forget_target": None, "max_steps": 200, "learning_rate": 3e-2}
    out = train(arguments(toy, tmp_path / "out", objective=BAD_TEACHER, reference=never, **options))
    steps = [line for line in log_of(out) if "loss" in line]
    assert steps[-1]["forget_reference"] < 0.15 * steps[0]["forget_reference"]
    assert all(answers(toy, "retain", out))
    assert not any(answers(toy, "forget", out))
    held_to = read_adapter_dir(out)[0].provenance.objective["reference_weights_sha256"]
    assert held_to == fingerprint_base_model(never).weights_sha256
    tokenizer = AutoTokenizer.from_pretrained(toy / "model")
    asked = [one.prompt for one in read_examples(toy / "forget.jsonl")]
    layered = load_adapter(AutoModelForCausalLM.from_pretrained(toy / "model"), out)
    said = [next_tokens(model, tokenizer, asked) for model in (AutoModelForCausalLM.from_pretrained(never), layered)]
    torch.testing.assert_close(said[0], said[1], atol=0.2, rtol=0.0)


def next_tokens(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> torch.Tensor:
    """What comes after each prompt, as probabilities [prompts, V]."""
    rows = [tokenizer(prompt, return_tensors="pt", return_token_type_ids=False) for prompt in prompts]
    with torch.no_grad():
        return torch.cat([model(**row).logits[:, -1].softmax(-1) for row in rows])


def test_frozen_w_down_stays_what_the_seed_draws(toy: Path, tmp_path: Path) -> None:
    options = {"freeze_down": True, "activation": "relu", "rank": 64}
    first, second = (
        train(arguments(toy, tmp_path / name, **options, objective=objective, forget_target=None, max_steps=20))
        for name, objective in (("first", TNPO), ("second", SIMNPO))
    )
    maps = [read_adapter_dir(out)[1] for out in (first, second)]
    assert all(torch.equal(maps[0].w_down[block], maps[1].w_down[block]) for block in maps[0].w_down)
    assert all(weight.abs().max() > 0 for one in maps for weight in one.w_up.values())
    assert not any(answers(toy, "forget", first))
    assert read_adapter_dir(first)[0].provenance.objective["freeze_down"] is True


def test_gradient_accumulation_and_no_retained_data(toy: Path, tmp_path: Path) -> None:
    out = train(arguments(toy, tmp_path / "out", retain=None, gradient_accumulation=2, max_steps=2, forget_target=None))
    manifest, _ = read_adapter_dir(out)
    assert set(manifest.provenance.data) == {"forget"}
    assert len(log_of(out)) == 2


def test_refuses_before_it_works(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(TrainingError, match="expected no finished adapter"):
        train(arguments(toy, tmp_path))
    with pytest.raises(TrainingError, match=r"blocks: expected some of 0..3, got \[7\]"):
        train(arguments(toy, tmp_path / "out", blocks=(7,)))
    with pytest.raises(TrainingError, match="rank: expected at least 1, got 0"):
        arguments(toy, tmp_path / "out", rank=0)
    with pytest.raises(TrainingError, match="'alternate' needs retained examples"):
        arguments(toy, tmp_path / "out", retain=None, schedule="alternate")
    other = toy_model()
    other.resize_token_embeddings(300)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(TrainingError, match="expected a vocabulary of 260 tokens as the base model has, got 300"):
        train(arguments(toy, tmp_path / "out", retrained=tmp_path / "other"))
    with pytest.raises(TrainingError, match="depth: expected"):
        arguments(toy, tmp_path / "out", depth=(0.5, 0.5))


def test_whole_answers_can_be_forgotten(toy: Path, tmp_path: Path) -> None:
    out = train(arguments(toy, tmp_path / "out", gold_only=False, own_answers=False))
    assert not any(answers(toy, "forget", out))
