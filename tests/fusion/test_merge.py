"""`unlearn-serve merge`: the merged checkpoint computes what the base computes under the adapter, or is not written."""

import sys
from pathlib import Path

import pytest
import torch
from support.adapters import write_random_adapter
from support.tiny_models import write_tiny_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from unlearn_serve.cli.app import main
from unlearn_serve.errors import BaseModelMismatch, FusionError
from unlearn_serve.format import read_adapter_dir
from unlearn_serve.fusion import fold_into, merge_dirs
from unlearn_serve.layers import load_adapter

TOKENS = torch.randint(3, 320, (2, 9), generator=torch.Generator().manual_seed(7))


def write_base(out: Path, *, dtype: torch.dtype = torch.float32, family: str = "llama", **options: object) -> Path:
    """A tiny checkpoint in `dtype`; biases, zero when they are made, get values."""
    write_tiny_model(out, family=family, **options)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(out)
    (out / "tokenizer.json").write_text('{"kept": "verbatim"}')
    return out


def write_adapter(base: Path, out: Path, **options: object) -> Path:
    return write_random_adapter(base, out, **{"activation": "identity", "scale": 0.5, **options})


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits.float()


def load(path: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()


@pytest.mark.parametrize(
    ("family", "options"),
    [("llama", {}), ("llama", {"mlp_bias": True}), ("phi3", {}), ("gemma2", {"head_dim": 32})],
    ids=["llama", "biased", "phi3", "gemma2"],
)
def test_logits_are_those_of_the_adapter(tmp_path: Path, family: str, options: dict[str, object]) -> None:
    base = write_base(tmp_path / "base", family=family, **options)
    adapter = write_adapter(base, tmp_path / "adapter")
    plain, expected = logits(load(base)), logits(load_adapter(load(base), adapter).eval())
    assert not torch.allclose(plain, expected, atol=1e-2), "the adapter must act at all"
    # fp32 throughout: what is left is the order of summation.
    torch.testing.assert_close(
        logits(load(merge_dirs(base, adapter, tmp_path / "out"))), expected, rtol=1e-4, atol=1e-4
    )


def test_a_bf16_base_stays_bf16_and_is_rounded_once(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = write_adapter(base, tmp_path / "adapter")
    merged, plain = load(merge_dirs(base, adapter, tmp_path / "out")), load(base)
    _, tensors = read_adapter_dir(adapter)
    for block, w_down in tensors.w_down.items():
        weight = plain.model.layers[block].mlp.down_proj.weight.double()
        exact = weight + tensors.w_up[block].double() @ (w_down.double() @ weight)
        got = merged.model.layers[block].mlp.down_proj.weight
        assert got.dtype == torch.bfloat16
        # Half a unit in the last of bf16's 8 bits; folding in bf16 would round thrice and miss this.
        torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-6)


def test_the_checkpoint_is_complete_and_all_else_is_the_base(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", blocks=[1])
    out = merge_dirs(base, adapter, tmp_path / "out")
    assert {file.name for file in base.iterdir()} <= {file.name for file in out.iterdir()}
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert (out / "unlearn_manifest.json").read_bytes() == (adapter / "manifest.json").read_bytes()
    before, after = load(base).state_dict(), load(out).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.layers.1.mlp.down_proj.weight"}


def test_an_activation_between_the_maps_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", activation="silu")
    with pytest.raises(FusionError, match="expected activation identity, got silu"):
        merge_dirs(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("mixtral", {"num_local_experts": 2}, "expected a dense feed-forward network"),
        ("phi", {}, "with one linear down_proj, got PhiMLP with NoneType"),
    ],
)
def test_other_feed_forward_networks_are_refused(
    tmp_path: Path, family: str, options: dict[str, object], message: str
) -> None:
    base = write_base(tmp_path / "base", family=family, **options)
    adapter = write_adapter(base, tmp_path / "adapter")
    with pytest.raises(FusionError, match=message):
        merge_dirs(base, adapter, tmp_path / "out")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["adapter", "base"]


def test_a_network_that_goes_on_after_down_proj_is_refused_and_left_alone(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    _, tensors = read_adapter_dir(write_adapter(base, tmp_path / "adapter"))
    model = load(base)
    inner = type(model.model.layers[1].mlp)

    class Clipped(inner):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).tanh()

    model.model.layers[1].mlp.__class__ = Clipped
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(FusionError, match="Clipped does something after its down_proj"):
        fold_into(model, tensors)
    # Block 0 could have been folded; all or none.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_weight_that_blocks_share_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    _, tensors = read_adapter_dir(write_adapter(base, tmp_path / "adapter"))
    model = load(base)
    model.model.layers[1].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight
    with pytest.raises(FusionError, match="got one that 2 modules share"):
        fold_into(model, tensors)


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    base, other = write_base(tmp_path / "base"), write_base(tmp_path / "other", seed=1)
    adapter = write_adapter(other, tmp_path / "adapter")
    with pytest.raises(BaseModelMismatch, match="weights_sha256"):
        merge_dirs(base, adapter, tmp_path / "out")


def test_the_command_merges_and_refuses_a_folder_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_base(tmp_path / "base")
    adapter, out = write_adapter(base, tmp_path / "adapter"), tmp_path / "out"
    arguments = ["merge", "--model", base, "--adapter", adapter, "--out", out]
    monkeypatch.setattr(sys, "argv", ["unlearn-serve", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert capsys.readouterr().out.strip() == str(out)
    assert AutoConfig.from_pretrained(out).model_type == "llama"
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "missing or empty" in capsys.readouterr().err
