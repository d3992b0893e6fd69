"""Every method on every kind of model: what it promises all, and what each claims."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.paper.baselines import BASELINES, load_unlearned
from benchmarks.paper.baselines.models import load_original, weight_bytes
from benchmarks.paper.task import Budget, Kind
from tests.paper.baselines.tasks import MakeTask, gold_probability, quick, rows, tensors
from tests.training.toy import FORGET

NAMES = list(BASELINES)
TRAINED = [name for name in NAMES if name != "original"]


def test_the_tables_rows() -> None:
    assert NAMES == [
        "original",
        "retrain",
        "finetune",
        "sisa",
        "reverse-gradient",
        "mend-like",
        "lora",
        "eul",
        "eul-bounded",
    ]


@pytest.mark.parametrize("kind", ["decoder", "seq2seq", "classes"])
@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_weights_within_the_budget(make_task: MakeTask, tmp_path: Path, name: str, kind: Kind) -> None:
    """Also: it leaves a record from which another process gets the same model."""
    found, counts = [], []
    for run in ("first", "second"):
        task = make_task(kind, tmp_path / run)
        task = replace(task, fit=replace(task.fit, epochs=2))
        unlearned = quick(name).run(task, Budget(steps=3))
        found.append(tensors(unlearned.model))
        counts.append(replace(unlearned.accounting, seconds=0.0, peak_rss_bytes=None))
        assert not unlearned.model.training
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert counts[0] == counts[1]
    assert counts[0].optimizer_steps == {"original": 0}.get(name, 3)
    again = load_unlearned(task, name)
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in tensors(again.model).items())
    assert again.accounting == unlearned.accounting
    assert json.loads((task.work / name / "unlearned.json").read_text()) == unlearned.record()
    if unlearned.adapter is not None:
        files = {file.name: file.stat().st_size for file in unlearned.adapter.glob("*.safetensors")}
        assert counts[0].served_bytes == files["adapter_model.safetensors"]
        assert counts[0].stored_bytes == sum(files.values())
    elif unlearned.checkpoint is not None and name != "original":
        assert counts[0].served_bytes == counts[0].stored_bytes == weight_bytes(unlearned.checkpoint)


@pytest.mark.parametrize("name", TRAINED)
def test_what_each_forgets_and_keeps(make_task: MakeTask, tmp_path: Path, name: str) -> None:
    task = make_task("decoder", tmp_path)
    original = load_original(task)
    assert min(gold_probability(original, task.train)) > 0.7
    unlearned = quick(name).run(task, Budget())
    forgotten = max(gold_probability(unlearned.model, task.forget))
    kept = min(gold_probability(unlearned.model, task.retain))
    if name != "finetune":  # nothing makes it forget
        assert forgotten < 0.3
    if name not in ("sisa", "eul"):  # a shard of few rows knows little; the paper's objective has no lower bound
        assert kept > 0.5


def test_only_the_layers_of_an_adapter_change(make_task: MakeTask, tmp_path: Path) -> None:
    """Gradients flow into the adapter alone: what lies under it is the original, bit for bit."""
    task = make_task("decoder", tmp_path)
    before = tensors(load_original(task))
    for name in ("lora", "eul", "eul-bounded"):
        unlearned = quick(name).run(task, Budget(steps=3))
        after = {
            key.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor
            for key, tensor in tensors(unlearned.model).items()
            if "lora_" not in key
        }
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
        written = load_file(unlearned.adapter / "adapter_model.safetensors")
        ups = [tensor for key, tensor in written.items() if "lora_B" in key]
        assert len(ups) == 2, "a block each"
        assert all(up.abs().max() > 0 for up in ups)
        assert unlearned.accounting.trainable_parameters == sum(tensor.numel() for tensor in written.values())


def test_full_fine_tuning_reaches_every_parameter(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task("decoder", tmp_path)
    before = tensors(load_original(task))
    for name in ("finetune", "reverse-gradient"):
        unlearned = quick(name).run(task, Budget(steps=3))
        after = tensors(unlearned.model)
        assert all(not torch.equal(after[key], tensor) for key, tensor in before.items())
        assert unlearned.accounting.trainable_parameters == unlearned.model.num_parameters()


def test_lora_starts_from_the_loss_of_eul_bounded(make_task: MakeTask, tmp_path: Path) -> None:
    """Both begin as the identity: one objective on the same examples gives one loss."""
    task = make_task("decoder", tmp_path)
    first = []
    for name in ("lora", "eul-bounded"):
        unlearned = quick(name).run(task, Budget(steps=2))
        lines = [json.loads(line) for line in (unlearned.adapter / "training_log.jsonl").read_text().splitlines()]
        first.append(next(line for line in lines if "loss" in line))
    for key in ("loss", "forget_tnpo", "retain_kl", "forget_probability", "retain_probability"):
        assert first[0][key] == pytest.approx(first[1][key], abs=1e-5)


def test_a_later_request_reads_what_the_first_one_kept_of_the_frozen_model(make_task: MakeTask, tmp_path: Path) -> None:
    task, method = make_task("decoder", tmp_path), quick("eul-bounded")
    plain = method.run(task, Budget(steps=2))
    later = replace(method, settings={**method.settings, "frozen_cache": "frozen"}).run(task, Budget(steps=2))
    assert "first_request_seconds" not in plain.details
    assert later.details["first_request_seconds"] > 0
    assert later.accounting.optimizer_steps == plain.accounting.optimizer_steps == 2
    assert later.accounting.tokens_forward < plain.accounting.tokens_forward
    assert later.accounting.stored_bytes > plain.accounting.stored_bytes


def test_lora_on_all_linear_maps_of_the_upper_half(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task("decoder", tmp_path)
    unlearned = replace(BASELINES["lora"], targets="all-linear", settings={"rank": 4}).run(task, Budget(steps=1))
    written = load_file(unlearned.adapter / "adapter_model.safetensors")
    maps = {key.partition(".lora_")[0].removeprefix("base_model.model.") for key in written}
    attention = {f"model.layers.1.self_attn.{name}_proj" for name in "qkvo"}
    assert maps == attention | {f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}


def test_bf16(make_task: MakeTask, tmp_path: Path) -> None:
    """Full fine-tuning keeps fp32 weights; who freezes the model holds it in bf16, and what is trained in fp32."""
    task = replace(make_task("decoder", tmp_path), precision="bf16")
    for name in TRAINED:
        unlearned = quick(name).run(replace(task, fit=replace(task.fit, epochs=2)), Budget(steps=2))
        dtypes = {tensor.dtype for key, tensor in tensors(unlearned.model).items() if "lora_" not in key}
        frozen = name in ("lora", "eul", "eul-bounded")
        assert torch.bfloat16 in dtypes if frozen else dtypes == {torch.float32}
        if frozen:
            written = load_file(unlearned.adapter / "adapter_model.safetensors")
            assert {tensor.dtype for tensor in written.values()} == {torch.float32}


def test_a_task_that_contradicts_itself_is_refused(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task("decoder", tmp_path)
    with pytest.raises(ValueError, match="expected rows to forget, got none"):
        replace(task, forget=())
    with pytest.raises(ValueError, match="got 3 in both"):
        replace(task, retain=task.train)
    with pytest.raises(ValueError, match="expected train to be forget and retain together"):
        replace(task, train=rows(FORGET))
