"""B1 to B4: what the fingerprint of a base model depends on, and what it does not."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from format.tiny import safetensors_file
from format.tiny_model import CONFIG, weights, write_model
from safetensors.torch import save_file

from unlearn_serve.errors import BaseModelMismatch
from unlearn_serve.format import BaseModelRef, fingerprint_base_model, require_same_base
from unlearn_serve.format.fingerprint import VOLATILE_KEYS
from unlearn_serve.format.fingerprint_cache import cache_folder


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_does_not_depend_on_sharding(tmp_path: Path, shards: int) -> None:
    one = fingerprint_base_model(write_model(tmp_path / "one"), name="m")
    assert fingerprint_base_model(write_model(tmp_path / "many", shards=shards), name="m") == one
    assert (one.architecture, one.num_blocks, one.hidden_size) == ("LlamaForCausalLM", 4, 6)


def test_is_what_the_rule_says(tmp_path: Path) -> None:
    """B1 and B2, computed here from the rules' text alone."""
    import hashlib

    def digest_of(value: Any) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    names = {torch.float32: "F32", torch.bfloat16: "BF16"}
    listing = [
        [name, names[t.dtype], list(t.shape), hashlib.sha256(t.view(torch.uint8).numpy().tobytes()).hexdigest()]
        for name, t in sorted(weights().items())
    ]
    config = {key: value for key, value in CONFIG.items() if key != "transformers_version"}
    config["rope_parameters"] = {"rope_theta": 1e5}
    found = fingerprint_base_model(write_model(tmp_path / "model"))
    assert (found.weights_sha256, found.config_sha256) == (digest_of(listing), digest_of(config))


def test_one_flipped_bit_changes_it_though_times_are_set_back(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    before = fingerprint_base_model(model)
    file = model / "model.safetensors"
    times = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = fingerprint_base_model(model)
    assert after.weights_sha256 != before.weights_sha256
    assert after.config_sha256 == before.config_sha256
    with pytest.raises(BaseModelMismatch, match="they differ in weights_sha256"):
        require_same_base(before, after)


def test_a_renamed_or_recast_tensor_changes_it(tmp_path: Path) -> None:
    before = fingerprint_base_model(write_model(tmp_path / "model")).weights_sha256
    for number, (old, new) in enumerate([("model.embed", "model.embedding"), ("model.embed", "model.embed")]):
        tensors = weights()
        tensor = tensors.pop(old)
        tensors[new] = tensor if old != new else tensor.view(torch.float16)  # the same bytes, another dtype
        directory = write_model(tmp_path / str(number))
        save_file(tensors, directory / "model.safetensors")
        assert fingerprint_base_model(directory).weights_sha256 != before


@pytest.mark.parametrize("key", sorted(VOLATILE_KEYS))
def test_volatile_keys_do_not_count_at_any_depth(tmp_path: Path, key: str) -> None:
    plain = fingerprint_base_model(write_model(tmp_path / "plain", text_config={"vocab": 9}))
    noisy = write_model(tmp_path / "noisy", text_config={"vocab": 9, key: "x"}, **{key: "y"})
    assert fingerprint_base_model(noisy).config_sha256 == plain.config_sha256


@pytest.mark.parametrize(
    "changes", [{"rope_parameters": {"rope_theta": 1e4}}, {"hidden_act": "gelu"}, {"tie_word_embeddings": True}]
)
def test_any_other_config_change_counts(tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = fingerprint_base_model(write_model(tmp_path / "plain"), name="m")
    changed = fingerprint_base_model(write_model(tmp_path / "changed", **changes), name="m")
    assert changed.weights_sha256 == plain.weights_sha256
    with pytest.raises(
        BaseModelMismatch, match=r"differ in config_sha256 \(expected \w{32}, got \w{32}\); use the base"
    ):
        require_same_base(plain, changed)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({"n_layer": 3, "n_embd": 5}, (3, 5)),
        ({"num_layers": 3, "d_model": 5}, (3, 5)),
        ({"text_config": {"num_hidden_layers": 3, "hidden_size": 5}}, (3, 5)),
    ],
)
def test_sizes_under_other_names(tmp_path: Path, config: dict[str, Any], sizes: tuple[int, int]) -> None:
    model = write_model(tmp_path / "model")
    (model / "config.json").write_text(json.dumps({"architectures": ["A"]} | config))
    found = fingerprint_base_model(model)
    assert (found.num_blocks, found.hidden_size) == sizes


def test_files_beside_the_model_do_not_count(tmp_path: Path) -> None:
    """B3."""
    model = write_model(tmp_path / "model")
    before = fingerprint_base_model(model)
    save_file({"model.embed": torch.zeros(1)}, model / "consolidated.safetensors")
    assert fingerprint_base_model(model) == before


def test_digest_is_computed_once_until_a_file_changes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    before = fingerprint_base_model(model)
    (entry,) = cache_folder().iterdir()
    entry.write_text("e" * 64)  # so that a second hit is visible
    assert fingerprint_base_model(model).weights_sha256 == "e" * 64
    entry.write_text("rubbish")
    assert fingerprint_base_model(model) == before
    (model / "model.safetensors").write_bytes(
        safetensors_file({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"1")
    )
    assert fingerprint_base_model(model).weights_sha256 != before.weights_sha256


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model")
    (tmp_path / "file").write_text("")
    before = fingerprint_base_model(model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fingerprint_base_model(model) == before


def test_real_checkpoint_is_fingerprinted_as_transformers_saved_it(tmp_path: Path) -> None:
    """A model saved twice by transformers, in other shards, is the same base model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=64,
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="3KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one: BaseModelRef = fingerprint_base_model(tmp_path / "one")
    require_same_base(one, fingerprint_base_model(tmp_path / "many"))
    assert (one.name, one.architecture, one.num_blocks, one.hidden_size) == ("one", "LlamaForCausalLM", 2, 16)
