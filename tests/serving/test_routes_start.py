"""Servers with routes that must not start, and one that starts: with its model compiled, as without routes."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.adapters import write_random_adapter
from support.engine import batch_log_probabilities, engine_arguments, hold_route, set_environment, stage_and_flip
from support.server import running, serve_command
from support.tiny_models import write_tiny_model
from support.vllm_config import create_config, lone_worker
from transformers import AutoModelForCausalLM

from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.live import Live
from unlearn_serve.serving.models import WORKER_EXTENSION, enforced_layers, register_models
from unlearn_serve.serving.routes import Routes
from unlearn_serve.store import Store

LORA = {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 2, "lora_target_modules": ["unlearn"]}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, VLLM_ENABLE_V1_MULTIPROCESSING="0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("start")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return write_tiny_model(folder / "tiny")


@pytest.fixture(scope="module")
def releases(base: Path, folder: Path) -> list[str]:
    """The default of channel `production`, and a route that covers it."""
    store = Store.open(str(folder / "store"), create=True)
    digests = [
        store.publish(write_random_adapter(base, folder / str(seed), seed=seed, deletion_id="a")) for seed in range(2)
    ]
    store.promote(digests[0], "production", actor="test")
    return digests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_lora": False}, "--max-loras: expected at least 2, as many as routes, got no --enable-lora"),
        ({}, "--max-loras: expected at least 2, as many as routes, got 1"),
        ({"max_loras": 2, "lora_target_modules": ["q_proj"]}, "--lora-target-modules: expected unlearn among them"),
    ],
)
def test_a_worker_that_could_not_serve_routes_does_not_start(
    base: Path, folder: Path, releases: list[str], options: dict[str, Any], message: str
) -> None:
    from vllm.model_executor.model_loader.utils import initialize_model

    register_models()
    settings = {"store": str(folder / "store"), "state_dir": str(folder / "state"), "routes": 2}
    extension = {"additional_config": {"unlearn": settings}, "worker_extension_cls": WORKER_EXTENSION}
    config = create_config(base, **extension, **{**LORA, **options})

    with lone_worker(config), pytest.raises(NotEnforced, match=message):
        initialize_model(config)


def test_without_routes_ordinary_lora_leaves_the_sites_as_they_are(
    base: Path, folder: Path, releases: list[str]
) -> None:
    from vllm.model_executor.model_loader.utils import initialize_model

    register_models()
    settings = {"store": str(folder / "store"), "state_dir": str(folder / "state")}
    extension = {"additional_config": {"unlearn": settings}, "worker_extension_cls": WORKER_EXTENSION}
    config = create_config(base, **extension, **{**LORA, "lora_target_modules": ["q_proj"]})

    with lone_worker(config):
        layers = enforced_layers(initialize_model(config))
    assert layers.routes is None
    assert layers.live is not None
    assert len(layers.sites[0].rank_of_slot) == 2


@pytest.mark.parametrize(
    ("ordinary", "aliases", "message"),
    [
        ({"sql": None}, {"sql": "a" * 64}, "--route-alias: 'sql' is the name of an ordinary LoRA adapter already"),
        ({"sql": None}, {}, "--max-cpu-loras: expected at least 3, got 2"),
    ],
)
def test_an_api_server_without_a_place_for_routes_does_not_start(
    base: Path, tmp_path: Path, ordinary: dict[str, None], aliases: dict[str, str], message: str
) -> None:
    models = SimpleNamespace(base_model_paths=[SimpleNamespace(name="base")], lora_requests=ordinary)
    engine: Any = SimpleNamespace(vllm_config=create_config(base, **LORA))
    config = ServingConfig(store="/store", state_dir=str(tmp_path), routes=1, route_aliases=aliases)

    with pytest.raises(NotEnforced, match=message):
        Routes(
            config=config,
            engine=engine,
            live=Live(channel="c"),
            app_state=SimpleNamespace(openai_serving_models=models),
        )


@pytest.mark.engine
class TestCompiled:
    """A real engine that compiles its model, with routes."""

    @pytest.fixture(scope="class")
    def llm(self, base: Path, folder: Path, releases: list[str]) -> Iterator[Any]:
        with pytest.MonkeyPatch.context() as environment:
            set_environment(environment, VLLM_ENABLE_V1_MULTIPROCESSING="0")
            from vllm import LLM
            from vllm.distributed import cleanup_dist_env_and_memory

            arguments = engine_arguments(base, folder / "store", folder / "state", routes=1)
            eager = {"enforce_eager": False, "skip_tokenizer_init": True, "max_logprobs": -1, "dtype": "float32"}
            yield LLM(**{**arguments, **LORA, **eager})
            cleanup_dist_env_and_memory()

    def test_compilation_is_on(self, llm: Any) -> None:
        (status,) = llm.collective_rpc("unlearn_status")
        assert status["compilation"] == "DYNAMO_TRACE_ONCE"

    def test_the_compiled_model_reads_routing_and_flips_when_it_runs(
        self, llm: Any, folder: Path, releases: list[str]
    ) -> None:
        """The bug: routing, or the default's slot, is traced into the graph as it was at the start."""
        default, other = releases
        route = hold_route(llm, other, 50, folder / "routes")
        prompts = [[3, 14, 15, 92, 65, 35], [8, 97, 93, 23, 84, 62, 64]]
        mixed = batch_log_probabilities(llm, prompts, [None, route])
        swapped = batch_log_probabilities(llm, prompts, [route, None])
        (under_default,) = batch_log_probabilities(llm, prompts[:1], [None])
        stage_and_flip(llm, other)
        under_other = batch_log_probabilities(llm, prompts, [None, None])
        stage_and_flip(llm, default)

        torch.testing.assert_close(mixed[0], under_default, rtol=0, atol=1e-4)
        torch.testing.assert_close(mixed[1], under_other[1], rtol=0, atol=1e-4)
        torch.testing.assert_close(swapped[0], under_other[0], rtol=0, atol=1e-4)
        assert (under_default - under_other[0]).abs().max() > 0.01, "the test can tell releases apart"


@pytest.mark.engine
@pytest.mark.model
def test_a_server_with_an_ordinary_lora_serves_it_under_the_default_and_routes_beside_it(folder: Path) -> None:
    base = write_tiny_model(folder / "chatty", vocab_size=49152, tokenizer=ensure_checkpoint())
    store = Store.open(str(folder / "both"), create=True)
    default, route = (
        store.publish(write_random_adapter(base, folder / f"of-both-{seed}", seed=seed, deletion_id="a"))
        for seed in range(2)
    )
    store.promote(default, "production", actor="test")
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["o_proj"]))
    tuned.save_pretrained(folder / "sql-lora")
    flags = ("--routes", "1", "--enable-lora", "--lora-target-modules", "unlearn", "o_proj", "--max-cpu-loras", "3")
    command = serve_command(base, folder / "both", folder / "state", *flags, "--lora-modules", f"sql={folder}/sql-lora")
    with running(command, log=folder / "both.log", headers={}) as server:
        server.wait_ready()
        released = {}
        with server.client() as client:
            for model in ("base", "sql", f"base@{route}", "sql"):
                answer = client.post("/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 2})
                released[model] = answer.raise_for_status().headers["x-unlearn-release"]
            models = {card["id"] for card in client.get("/v1/models").json()["data"]}

    assert released == {"base": default, "sql": default, f"base@{route}": route}
    assert models == {"base", "sql", f"base@{route}"}
    assert "vllm-project/vllm#48421" in server.output
