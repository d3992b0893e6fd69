"""Whole training runs on a model that knows a handful of facts."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback

from tests.training.toy import FORGET, RETAIN, rows, toy_model, toy_tokenizer, write_jsonl, write_toy
from unlearn_serve.data import IGNORED, Example, encode, read_examples
from unlearn_serve.errors import TrainingError
from unlearn_serve.format import fingerprint_base_model, read_adapter_dir
from unlearn_serve.fusion.grams import GramFile
from unlearn_serve.layers import load_adapter
from unlearn_serve.training import BAD_TEACHER, EUL, IDK, RECIPES, RMU, SIMNPO, TNPO, Objective, TrainArgs, train
from unlearn_serve.training.answers import own_answers
from unlearn_serve.training.landing import HALVINGS

FAST = {"rank": 8, "learning_rate": 1e-2, "forget_batch": 3, "retain_batch": 4, "max_steps": 60}


def arguments(toy: Path, out: Path, **options: object) -> TrainArgs:
    return TrainArgs(
        **{
            "model": toy / "model",
            "forget": toy / "forget.jsonl",
            "retain": toy / "retain.jsonl",
            "out": out,
            "deletion_ids": ("case-17",),
            "command": ("unlearn-serve", "train"),
            **FAST,
            **options,
        }
    )


def answers(toy: Path, name: str, adapter: Path | None) -> list[bool]:
    """Whether each greedy answer holds the gold string."""
    model = AutoModelForCausalLM.from_pretrained(toy / "model")
    model = load_adapter(model, adapter) if adapter else model
    examples = read_examples(toy / f"{name}.jsonl")
    said = own_answers(model, AutoTokenizer.from_pretrained(toy / "model"), examples, max_new_tokens=16)
    by_prompt = {one.prompt: one.completion for one in said}
    return [one.answer in by_prompt.get(one.prompt, "") for one in examples]


def log_of(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]


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


def test_grams_count_a_forgotten_row_once(toy: Path, tmp_path: Path) -> None:
    options = {"objective": EUL, "forget_target": None, "max_steps": 1, "learning_rate": 1e-9}
    grams = []
    for on_text in (True, False):
        out = train(arguments(toy, tmp_path / str(on_text), **options, lm_on_text=on_text))
        sites = read_adapter_dir(out)[0].adapter.sites
        grams.append(GramFile(out / "grams.safetensors", sites, rank=8, hidden_size=48))

    for block in grams[0]:
        with_text, without = (one[block] for one in grams)
        torch.testing.assert_close(with_text.down, without.down)
        torch.testing.assert_close(with_text.retained.down, without.retained.down)


def test_what_a_run_writes(toy: Path, tmp_path: Path) -> None:
    out = train(arguments(toy, tmp_path / "out", deletion_ids=("b", "a")))
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
    options = {"objective": replace(IDK, retain_kl=2.0), "refusal": "No.", "depth": (0.0, 1.0), "max_steps": 120}
    out = train(arguments(toy, tmp_path / "out", **settings, **options))
    model = load_adapter(AutoModelForCausalLM.from_pretrained(toy / "model"), out)
    tokenizer = AutoTokenizer.from_pretrained(toy / "model")
    said = own_answers(model, tokenizer, read_examples(toy / "forget.jsonl"), max_new_tokens=16)
    assert [one.completion for one in said] == ["No."] * 3
    assert all(answers(toy, "retain", out))


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


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_same_seed_same_bytes_and_a_killed_run_resumes_to_them(toy: Path, tmp_path: Path, schedule: str) -> None:
    options = {"schedule": schedule, "max_steps": 9, "forget_target": None, "save_steps": 4, "own_answers": False}
    first = train(arguments(toy, tmp_path / "first", **options))
    second = train(arguments(toy, tmp_path / "second", **options))
    with pytest.raises(Killed):
        train(arguments(toy, tmp_path / "killed", **options), callbacks=[KillAt(6)])
    assert not (tmp_path / "killed" / "manifest.json").exists(), "an unfinished run must not look finished"
    resumed = train(arguments(toy, tmp_path / "killed", **options))
    other = train(arguments(toy, tmp_path / "other", **options, seed=1))

    def adapter(out: Path) -> bytes:
        return (out / "adapter_model.safetensors").read_bytes()

    assert adapter(first) == adapter(second)
    assert adapter(first) == adapter(resumed)
    assert adapter(first) != adapter(other)
    assert load_file(first / "grams.safetensors").keys() == load_file(resumed / "grams.safetensors").keys()
    assert [line["step"] for line in log_of(resumed)] == list(range(1, 10)), "no line twice, none missing"
    assert [line["loss"] for line in log_of(resumed)] == [line["loss"] for line in log_of(first)]


def test_grams_are_x_transposed_x_of_what_the_maps_read(toy: Path, tmp_path: Path) -> None:
    """By hand: plain text rows, so that each token of each example counts once."""
    (tmp_path / "text.jsonl").write_text('{"text": "abcd"}\n')
    out = train(arguments(toy, tmp_path / "out", forget=tmp_path / "text.jsonl", retain=None, max_steps=3))
    manifest, tensors = read_adapter_dir(out)
    model = load_adapter(AutoModelForCausalLM.from_pretrained(toy / "model"), out)
    tokens = AutoTokenizer.from_pretrained(toy / "model")("abcd", return_tensors="pt").input_ids
    seen: dict[int, torch.Tensor] = {}
    for block in manifest.adapter.sites:
        site = model.get_submodule(f"base_model.model.model.layers.{block}.mlp.unlearn")
        site.register_forward_pre_hook(lambda _, args, block=block: seen.update({block: args[0][0].detach()}))
    model(input_ids=tokens)
    grams = GramFile(out / "grams.safetensors", manifest.adapter.sites, rank=8, hidden_size=48)
    for block, h in seen.items():
        torch.testing.assert_close(grams[block].down, h.T @ h, rtol=1e-3, atol=1e-4)
        a = torch.nn.functional.silu(h @ tensors.w_down[block].T)
        torch.testing.assert_close(grams[block].up, a.T @ a, rtol=1e-3, atol=1e-5)

    rough = train(
        arguments(toy, tmp_path / "rough", forget=tmp_path / "text.jsonl", retain=None, max_steps=3, gram_sketch=2)
    )
    assert (rough / "adapter_model.safetensors").read_bytes() == (out / "adapter_model.safetensors").read_bytes()
    sketched = GramFile(rough / "grams.safetensors", manifest.adapter.sites, rank=8, hidden_size=48)
    for block, gram in grams.items():
        torch.testing.assert_close(sketched[block].down.diagonal(), gram.down.diagonal(), rtol=1e-4, atol=1e-5)
        assert 0.01 < (sketched[block].down - gram.down).norm() / gram.down.norm() < 0.9, "four tokens in two rows"
    assert (rough / "grams.safetensors").stat().st_size < (out / "grams.safetensors").stat().st_size / 3


def test_two_processes_train_one_adapter(toy: Path, tmp_path: Path) -> None:
    """Under torchrun: each process sees examples of its own, both end with the same layers, one writes."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from unlearn_serve.training import TrainArgs, train\n"
        "toy, out = map(Path, sys.argv[1:])\n"
        "train(TrainArgs(model=toy / 'model', forget=toy / 'forget.jsonl', retain=toy / 'retain.jsonl', out=out,\n"
        "    deletion_ids=('x',), rank=8, learning_rate=1e-2, forget_batch=2, retain_batch=2, max_steps=60))\n"
    )
    command = [
        "--nproc-per-node=2",
        "--standalone",
        "--local-addr=127.0.0.1",
        str(script),
        str(toy),
        str(tmp_path / "out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert not any(answers(toy, "forget", tmp_path / "out"))
    steps = [line["step"] for line in log_of(tmp_path / "out") if "loss" in line]
    assert steps == list(range(1, len(steps) + 1)), "one process writes the log"


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


def test_a_loss_that_is_not_finite_ends_the_run(toy: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy / "model")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(toy / "model").save_pretrained(tmp_path / "broken")
    with pytest.raises(TrainingError, match="step 1: expected a finite loss, got nan"):
        train(arguments(toy, tmp_path / "out", model=tmp_path / "broken", own_answers=False))
