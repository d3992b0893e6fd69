"""The layer alone: its equation, dtypes, several adapters, mixed batches, and what it refuses."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model

from tests.layers.tiny import hand_computed, logits, randomise, some_tokens, tiny
from unlearn_kernels import ACTIVATIONS, activate
from unlearn_serve.layers import (
    UnlearnConfig,
    UnlearningLayer,
    UnlearningSite,
    add_adapter,
    attach_sites,
    cat_adapters,
    save_adapter,
    tensors_of,
)


def single_layer(d: int, rank: int, activation: str) -> UnlearningLayer:
    config = UnlearnConfig(r=rank, unlearn_activation=activation)
    return UnlearningLayer(UnlearningSite(d, 0), "default", config, r=rank, lora_alpha=rank)


@given(
    tokens=st.integers(0, 9),
    d=st.sampled_from([1, 8, 33]),
    rank=st.integers(1, 20),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 99),
)
def test_layer_computes_the_equation(tokens: int, d: int, rank: int, activation: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = single_layer(d, rank, activation)
    w_down, w_up = layer.maps("default")
    with torch.no_grad():
        w_up.copy_(torch.randn(d, rank, generator=generator))
    h = torch.randn(2, tokens, d, generator=generator)
    before = h.clone()
    expected = h + activate(h @ w_down.T, activation) @ w_up.T
    torch.testing.assert_close(layer(h), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(h, before)


def test_maps_stay_fp32_over_a_bf16_base_and_the_sum_is_rounded_once() -> None:
    model = add_adapter(tiny(dtype=torch.bfloat16), rank=4)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 4
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    layer = next(m for m in model.modules() if isinstance(m, UnlearningLayer))
    randomise(tensors_of(model))
    h = torch.randn(5, 64).bfloat16()
    expected = (h.float() + layer.delta(h.float(), "default")).bfloat16()
    assert layer(h).dtype is torch.bfloat16
    assert torch.equal(layer(h), expected)


def test_w_down_depends_on_seed_and_block_alone() -> None:
    upper = tensors_of(add_adapter(tiny(blocks=4), rank=8, blocks=[2, 3], seed=5))
    torch.manual_seed(123)
    everywhere = tensors_of(add_adapter(tiny(blocks=4), rank=8, seed=5))
    other = tensors_of(add_adapter(tiny(blocks=4), rank=8, seed=6))
    assert list(upper) == [2, 3]
    for block in upper:
        assert torch.equal(upper[block][0], everywhere[block][0])
        assert not torch.equal(everywhere[block][0], other[block][0])
        assert not upper[block][1].any()
        assert upper[block][0].abs().max() <= 64**-0.5
    assert not torch.equal(everywhere[2][0], everywhere[3][0])


def test_adapters_add_up_and_cat_equals_their_sum() -> None:
    tokens = some_tokens()
    model = add_adapter(tiny(), rank=4, seed=1, adapter_name="one")
    model = add_adapter(model, rank=6, seed=2, adapter_name="two")
    for name, seed in (("one", 1), ("two", 2)):
        randomise(tensors_of(model, name), seed)
    model.base_model.set_adapter(["one", "two"])
    both = logits(model, tokens)

    joined = {
        block: (torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]], dim=1))
        for (block, a), b in zip(tensors_of(model, "one").items(), tensors_of(model, "two").values(), strict=True)
    }
    reference = tiny()
    with hand_computed(reference, joined, "silu"):
        torch.testing.assert_close(both, logits(reference, tokens), rtol=1e-4, atol=1e-5)

    cat_adapters(model, ["one", "two"], "c")
    model.set_adapter("c")
    assert model.peft_config["c"].r == 10
    torch.testing.assert_close(logits(model, tokens), both, rtol=1e-4, atol=1e-5)


def test_mixed_batch_serves_each_row_by_its_own_adapter() -> None:
    tokens = some_tokens(batch=4)
    model = add_adapter(tiny(), rank=4, seed=1, adapter_name="one")
    model = add_adapter(model, rank=4, seed=2, adapter_name="two")
    for name, seed in (("one", 1), ("two", 2)):
        randomise(tensors_of(model, name), seed)
    model.eval()
    mixed = logits(model, tokens, adapter_names=["one", "two", "__base__", "one"])
    for name, rows in (("one", [0, 3]), ("two", [1])):
        model.set_adapter(name)
        torch.testing.assert_close(mixed[rows], logits(model, tokens)[rows], rtol=1e-4, atol=1e-5)
    assert torch.equal(mixed[2], logits(tiny(), tokens)[2])


def test_peft_users_ways_work(tmp_path: Path) -> None:
    """get_peft_model, save_pretrained, from_pretrained, unload: nothing of ours but the config and the sites."""
    tokens = some_tokens()
    base = tiny()
    attach_sites(base)
    model = get_peft_model(base, UnlearnConfig(r=4, unlearn_activation="relu"))
    randomise(tensors_of(model))
    got = logits(model, tokens)
    model.save_pretrained(str(tmp_path))
    fresh = tiny()
    attach_sites(fresh)
    again = PeftModel.from_pretrained(fresh, str(tmp_path), config=UnlearnConfig.from_pretrained(str(tmp_path)))
    assert torch.equal(logits(again, tokens), got)
    assert torch.equal(logits(again.unload(), tokens), logits(tiny(), tokens))


def test_refuses_what_would_be_wrong(tmp_path: Path) -> None:
    model = add_adapter(tiny(), rank=4, seed=1, adapter_name="one")
    add_adapter(model, rank=4, activation="relu", adapter_name="two")
    add_adapter(model, rank=4, blocks=[1], adapter_name="c")
    with pytest.raises(ValueError, match="activation: expected the same"):
        cat_adapters(model, ["one", "two"], "x")
    with pytest.raises(ValueError, match="blocks: expected the same"):
        cat_adapters(model, ["one", "c"], "x")
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="is no matrix"):
        model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "x", combination_type="svd")
    with pytest.raises(ValueError, match="blocks: expected some of"):
        add_adapter(model, rank=4, blocks=[2], adapter_name="y")
    with pytest.raises(ValueError, match="expected an UnlearnConfig, got LoraConfig"):
        model.add_adapter("z", LoraConfig(r=4, target_modules=["unlearn"]))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"unlearn_activation": "tanh"}, "unlearn_activation: expected one of identity, relu, silu, gelu, got 'tanh'"),
        ({"lora_alpha": 16}, "lora_alpha: expected 8"),
        ({"use_rslora": True}, "use_rslora: expected False"),
        ({"lora_dropout": 0.1}, "lora_dropout: expected 0.0"),
        ({"target_modules": ["q_proj"]}, "target_modules: expected"),
        ({"rank_pattern": {"layers.0": 4}}, "rank_pattern: expected"),
    ],
)
def test_config_refuses_what_the_format_has_no_place_for(option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnlearnConfig(**option)


def test_saved_files_name_no_machine(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    tiny().save_pretrained(tmp_path / "base")
    base = type(tiny()).from_pretrained(tmp_path / "base")
    save_adapter(add_adapter(base, rank=4), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = (tmp_path / "out" / "adapter_config.json").read_text()
    assert str(tmp_path) not in config
    assert '"unlearn_activation": "silu"' in config


def test_unknown_keys_of_a_newer_peft_are_refused_only_when_set() -> None:
    assert UnlearnConfig.from_peft_type(r=4, future_option=None).r == 4
    with pytest.raises(ValueError, match="got future_option"):
        UnlearnConfig.from_peft_type(r=4, future_option=True)
