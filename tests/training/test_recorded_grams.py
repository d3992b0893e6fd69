"""The Grams that a run leaves for fusion."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.runs import arguments
from unlearn_serve.format import read_adapter_dir
from unlearn_serve.fusion.grams import GramFile
from unlearn_serve.layers import load_adapter
from unlearn_serve.training import EUL, train


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
