"""Pipeline stages: each worker has the sites of its own blocks, under the numbers that they have in the whole model.

vLLM's own models, built as the worker of each stage builds them; the blocks of other stages are `PPMissingLayer`.
No engine runs here: vLLM 0.32 on CPU cannot serve with --pipeline-parallel-size above 1, with or without this plugin.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapters import write_random_adapter
from support.engine import set_environment
from support.tiny_models import write_tiny_model
from support.vllm_config import create_config, pipeline_stage

from unlearn_serve.serving.models import WORKER_EXTENSION, enforced_layers, register_models
from unlearn_serve.serving.slots import EnforcedLayers
from unlearn_serve.store import Store

BLOCKS, STAGES, D = 5, 2, 64


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny", num_hidden_layers=BLOCKS)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), create=True)


def publish(store: Store, base: Path, folder: Path, **options: Any) -> str:
    release = store.publish(write_random_adapter(base, folder, rank=4, **options))
    store.promote(release, "production", actor="test")
    return release


def stages_of(base: Path, tmp_path: Path) -> list[tuple[Any, EnforcedLayers]]:
    """The model of each stage, with what it enforces."""
    from vllm.model_executor.model_loader.utils import initialize_model

    register_models()
    settings = {"store": str(tmp_path / "store"), "state_dir": str(tmp_path / "state"), "max_rank": 4}
    config = create_config(base, additional_config={"unlearn": settings}, worker_extension_cls=WORKER_EXTENSION)
    found = []
    for rank in range(STAGES):
        with pipeline_stage(config, rank, STAGES):
            model = initialize_model(config)
            found.append((model, enforced_layers(model)))
    return found


def test_each_block_has_its_site_on_the_one_stage_that_has_the_block(base: Path, store: Store, tmp_path: Path) -> None:
    from vllm.model_executor.models.utils import PPMissingLayer

    release = publish(store, base, tmp_path / "adapter")
    tensors = store.load_release(release).tensors
    stages = stages_of(base, tmp_path)
    x = torch.randn(3, D, dtype=torch.bfloat16)

    assert sorted(block for _, layers in stages for block in layers.sites) == list(range(BLOCKS))
    for model, layers in stages:
        assert layers.live is not None
        assert layers.live.release == release
        missing = [number for number, block in enumerate(model.model.layers) if isinstance(block, PPMissingLayer)]
        assert missing, "this is a stage"
        assert set(layers.sites) == set(range(BLOCKS)) - set(missing)
        for block, site in layers.sites.items():
            assert model.model.layers[block].mlp.unlearn is site
            delta = tensors.w_up[block].float() @ torch.nn.functional.silu(tensors.w_down[block].float() @ x.float().T)
            torch.testing.assert_close(site(x).float(), x.float() + delta.T, rtol=0.02, atol=0.05)


def test_a_release_of_blocks_of_another_stage_goes_live_on_every_stage(
    base: Path, store: Store, tmp_path: Path
) -> None:
    """A stage without any layer of the release has to drop those of the release before, and to report the new one."""
    publish(store, base, tmp_path / "all")
    stages = [layers for _, layers in stages_of(base, tmp_path)]
    only_first = publish(store, base, tmp_path / "first", seed=1, blocks=[0])
    found = store.load_release(only_first)
    x = torch.randn(3, D, dtype=torch.bfloat16)

    for layers in stages:
        layers.stage(found.digest, found.tensors, found.manifest.deletion_ids)
        layers.flip(found.digest)

    assert {layers.live.release for layers in stages if layers.live} == {only_first}
    touched = [block for layers in stages for block, site in layers.sites.items() if not torch.equal(site(x), x)]
    assert touched == [0]
