"""The manifest of an encoder-decoder model's adapter: read where adapters are trained and fused, refused elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest
from format.tiny import HIDDEN, RANK, SITES, base_model, canonical, peft_config, provenance, random_tensors
from safetensors.torch import save_file

from unlearn_serve.errors import ManifestError
from unlearn_serve.format import (
    Manifest,
    TwoStackManifest,
    TwoStackSpec,
    describe_adapter_dir,
    read_adapter_dir,
    read_adapter_files,
    tensor_names,
    write_manifest,
)
from unlearn_serve.store import Store

ENCODER, DECODER = "encoder.block.1.layer.1.DenseReluDense", "decoder.block.0.layer.2.DenseReluDense"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Of a model with two blocks in each stack: sites 1 and 2."""
    drawn = list(random_tensors().values())
    names = [name for site in (ENCODER, DECODER) for name in tensor_names(site)]
    save_file(dict(zip(names, drawn, strict=True)), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config()))
    files, tensors = describe_adapter_dir(tmp_path)
    spec = TwoStackSpec(rank=RANK, activation="silu", sites={1: ENCODER, 2: DECODER}, dtype="float32", tensors=tensors)
    manifest = TwoStackManifest(
        base_model=base_model(architecture="T5ForConditionalGeneration"),
        adapter=spec,
        deletion_ids=("case-17",),
        parents=(),
        provenance=provenance(),
        evaluation=None,
        files=files,
    )
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_reads_back(adapter: Path) -> None:
    manifest, tensors = read_adapter_dir(adapter)
    assert isinstance(manifest, TwoStackManifest)
    assert manifest.adapter.sites == {1: ENCODER, 2: DECODER}
    assert tensors.w_down[2].shape == (RANK, HIDDEN)


def test_is_never_published(adapter: Path, tmp_path: Path) -> None:
    """M23: neither as a directory nor as bytes that somebody else put into a store."""
    with pytest.raises(ManifestError, match="cannot be published, the engine serves decoders only; use it with"):
        read_adapter_files(adapter)
    (tmp_path / "store").mkdir()
    with pytest.raises(ManifestError, match="cannot be published"):
        Store.open(str(tmp_path / "store")).publish(adapter)
    assert not any((tmp_path / "store").iterdir())
    with pytest.raises(ManifestError, match="expected 'unlearn-serve/manifest/1', got 'unlearn-serve/two-stacks"):
        Manifest.from_bytes((adapter / "manifest.json").read_bytes())


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        pytest.param({1: SITES[1], 2: DECODER}, "1 is at 'model.layers.1.mlp', a path without encoder.block", id="M24"),
        pytest.param({1: ENCODER, 9: DECODER}, "block 9, but the base model has 4", id="M24-beyond"),
        pytest.param({1: DECODER, 2: ENCODER}, "expected the encoder's blocks, then the decoder's", id="M25-order"),
        pytest.param(
            {1: ENCODER, 2: ENCODER.replace("layer.1", "layer.0")}, "each once and in order", id="M25-one-block-twice"
        ),
    ],
)
def test_refuses_ambiguous_sites(adapter: Path, sites: dict[int, str], message: str) -> None:
    document: dict[str, Any] = json.loads((adapter / "manifest.json").read_bytes())
    document["adapter"]["sites"] = {str(number): site for number, site in sites.items()}
    old = sorted(document["adapter"]["tensors"].values(), key=lambda spec: spec["shape"])
    names = [tensor_names(site) for site in sites.values()]
    document["adapter"]["tensors"] = {name: spec for pair in names for name, spec in zip(pair, old[::2], strict=True)}
    with pytest.raises(ManifestError, match=message):
        TwoStackManifest.from_bytes(canonical(document))
