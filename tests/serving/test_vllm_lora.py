"""Every fact about vLLM's adapters that routes lean on, against the installed release, with no engine started.

A failure here names what a vLLM release moved: change `unlearn_serve/serving/vllm_lora.py` before anything else.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from starlette.datastructures import Headers
from support.engine import set_environment
from support.tiny_models import write_tiny_model
from support.vllm_config import create_config, lone_worker
from support.vllm_facts import require
from torch import nn

from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving import vllm_internals, vllm_lora
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.route_table import Route, RouteTable
from unlearn_serve.serving.slots import DEFAULT_SLOTS, EnforcedLayers, Routing

D, RANK, SLOTS = 64, 8, 2


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("lora") / "tiny")


@pytest.fixture
def config(tiny: Path) -> Any:
    return _config(tiny)


def _config(tiny: Path, **options: Any) -> Any:
    lora = {"enable_lora": True, "max_loras": SLOTS, "max_cpu_loras": 3, "lora_target_modules": ["unlearn"]}
    return create_config(tiny, **{**lora, **options})


class TestConfig:
    def test_sizes(self, config: Any, tiny: Path) -> None:
        require(vllm_lora.lora_slots(config) == SLOTS, "LoRAConfig.max_loras")
        require(vllm_lora.cached_loras(config) == 3, "LoRAConfig.max_cpu_loras")
        require(vllm_lora.lora_targets(config) == ["unlearn"], "LoRAConfig.target_modules, --lora-target-modules")
        plain = create_config(tiny)
        assert (vllm_lora.lora_slots(plain), vllm_lora.cached_loras(plain)) == (0, 0)

    def test_ranks(self) -> None:
        from vllm.config.lora import MaxLoRARanks

        require(set(vllm_lora.RANKS) <= set(get_args(MaxLoRARanks)), f"--max-lora-rank: {get_args(MaxLoRARanks)}")

    def test_what_is_refused_beside_adapters(self, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        require(config.parallel_config.enable_dbo is False, "ParallelConfig.enable_dbo")
        assert list(vllm_internals.unsupported_settings(config)) == []
        monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        (line,) = vllm_internals.unsupported_settings(config)
        assert line.startswith("VLLM_ALLOW_RUNTIME_LORA_UPDATING: ")


class TestAdaptersOfOthers:
    """On CPU, vLLM's ops for linear layers give the last adapter to tokens that have none."""

    def test_minus_one_is_read_as_the_last_slot(self, config: Any, tiny: Path) -> None:
        from vllm.lora.ops.torch_ops import bgmv_shrink

        out = torch.zeros(2, 1)
        weights = torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]])
        bgmv_shrink(torch.ones(2, 2), weights, out, torch.tensor([-1, 0]))
        require(out.tolist() == [[2.0], [0.0]], "it was mended: drop mixes_up_adapters and its warning")
        assert not vllm_lora.mixes_up_adapters(config, "unlearn")
        assert vllm_lora.mixes_up_adapters(_config(tiny, lora_target_modules=["unlearn", "q_proj"]), "unlearn")
        assert not vllm_lora.mixes_up_adapters(create_config(tiny), "unlearn")


class TestCompilation:
    """vLLM's CPU platform turns it off for any LoRA; `keep_compiled` turns it on again for our sites alone."""

    def test_it_is_won_back_as_it_is_without_lora(self, tiny: Path) -> None:
        config, plain = _config(tiny, enforce_eager=False), create_config(tiny, enforce_eager=False)
        require(vllm_lora.compilation_mode(config) == "NONE", "platforms/cpu.py no longer turns compilation off: gone?")

        assert vllm_lora.keep_compiled(config, "unlearn")
        assert vllm_lora.compilation_mode(config) == vllm_lora.compilation_mode(plain) != "NONE"
        for name in ("backend", "custom_ops", "inductor_compile_config", "splitting_ops"):
            ours, theirs = (getattr(one.compilation_config, name) for one in (config, plain))
            require(ours == theirs, f"CompilationConfig.{name} depends on the mode: got {ours}, without LoRA {theirs}")
        assert not vllm_lora.keep_compiled(config, "unlearn"), "once is enough"

    @pytest.mark.parametrize(
        "options",
        [
            {"enforce_eager": True},
            {"enforce_eager": False, "lora_target_modules": ["unlearn", "q_proj"]},
            {"enforce_eager": False, "lora_target_modules": None},
            {"enforce_eager": False, "compilation_config": {"mode": 0}},
        ],
    )
    def test_it_stays_off_where_it_was_off_or_linear_layers_are_wrapped(
        self, tiny: Path, options: dict[str, Any]
    ) -> None:
        config = _config(tiny, **options)

        assert not vllm_lora.keep_compiled(config, "unlearn")
        assert vllm_lora.compilation_mode(config) == "NONE"


class _Ffn(nn.Module):
    def __init__(self, site: nn.Module) -> None:
        super().__init__()
        self.unlearn = site


def _model(site: nn.Module) -> nn.Module:
    """What vLLM's manager needs of a model: one site, and what marks a model as able to have LoRA."""
    from vllm.model_executor.models import SupportsLoRA

    class Model(nn.Module, SupportsLoRA):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = _Ffn(site)
            self.config = None

    return Model()


@pytest.fixture
def managed(config: Any) -> Iterator[tuple[Any, Any]]:
    """vLLM's own manager around one of our sites, as a worker has it."""
    from vllm.lora.model_manager import LRUCacheLoRAModelManager, create_lora_manager

    from unlearn_serve.serving.routed_site import RoutedSite
    from unlearn_serve.serving.worker_routes import route_at

    with lone_worker(config):
        routing = Routing(max_tokens=16, routes=SLOTS)
        site = RoutedSite(routing, hidden_size=D, max_rank=RANK, dtype=torch.float32)
        model = _model(site)
        assert routing.slot_of_route is not None
        site.routes = RouteTable(routing.slot_of_route, first_slot=DEFAULT_SLOTS, require_coverage=True)
        site.routes.adapter_at = lambda index: route_at(model, index)
        create_lora_manager(
            model,
            max_num_seqs=4,
            max_num_batched_tokens=16,
            vocab_size=320,
            lora_config=config.lora_config,
            vllm_config=config,
            device=torch.device("cpu"),
            lora_manager_cls=LRUCacheLoRAModelManager,
        )
        yield model, site


def _release(lora_id: int, ids: str = "a", *, verified: bool = True) -> Any:
    matrices = torch.full((4, D), float(lora_id)), torch.full((D, 4), float(lora_id))
    lora = vllm_lora.build_lora(lora_id, 4, {"mlp.unlearn": matrices})
    if verified:
        lora.unlearn_route = Route(release=str(lora_id) * 64, activation=2, deletion_ids=frozenset(ids))
    return lora


class TestManager:
    """vLLM's LoRA manager fills our sites."""

    def test_it_knows_our_sites_and_nothing_else(self, managed: tuple[Any, Any]) -> None:
        model, site = managed
        require(list(vllm_lora.site_names(model, type(site))) == ["mlp.unlearn"], "LoRAModelManager.modules")
        assert vllm_lora.site_names(nn.Module(), type(site)) == {}

    def test_the_routing_is_its_own_buffer_and_starts_with_no_adapter(self, managed: tuple[Any, Any]) -> None:
        _, site = managed
        routing = site.routing.slot_of_token
        require(routing is vllm_lora.route_of_token(site.punica_wrapper), "PunicaWrapperBase._token_lora_indices")
        require(routing.dtype == torch.int64, "its dtype")
        assert routing.tolist() == [-1] * len(routing)

    def test_it_writes_the_index_of_every_token_into_it(self, managed: tuple[Any, Any]) -> None:
        from vllm.lora.layers import LoRAMapping

        model, site = managed
        vllm_lora.adopt_lora(model, _release(7))
        model.lora_manager.activate_adapter(7)
        model.lora_manager.set_adapter_mapping(LoRAMapping((0, 7, 7), (0, 7), is_prefill=True))

        require(site.routing.slot_of_token[:3].tolist() == [-1, 0, 0], "PunicaWrapperBase.update_metadata")

    def test_activation_writes_weights_and_table(self, managed: tuple[Any, Any]) -> None:
        model, site = managed
        site.routes.move_default(1, frozenset("a"))
        for lora in (_release(7), _release(8, verified=False)):
            vllm_lora.adopt_lora(model, lora)
            model.lora_manager.activate_adapter(lora.id)

        assert site.routing.slot_of_route.tolist() == [1, DEFAULT_SLOTS, 1]
        assert site.rank_of_slot.tolist() == [0, 0, 4, 0], "what was not verified is not even written"
        assert site.w_down[DEFAULT_SLOTS, :4].unique().tolist() == [7.0]
        held = {lora.id: slot for lora, slot in vllm_lora.adapters(model)}
        require(held == {7: 0, 8: 1}, "LoRAModelManager.list_adapters, lora_index_to_id")

    def test_a_slot_goes_to_another_adapter(self, managed: tuple[Any, Any]) -> None:
        model, site = managed
        for lora in (_release(7), _release(8), _release(9, ids="z")):
            vllm_lora.adopt_lora(model, lora)
            model.lora_manager.activate_adapter(lora.id)
        site.routes.move_default(0, frozenset("a"))

        assert site.routing.slot_of_route.tolist() == [0, 0, DEFAULT_SLOTS + 1]
        assert site.w_down[DEFAULT_SLOTS, :4].unique().tolist() == [9.0]

    def test_what_is_adopted_is_kept_until_it_is_dropped(self, managed: tuple[Any, Any]) -> None:
        model, _ = managed
        for lora_id in (1, 2, 3):
            vllm_lora.adopt_lora(model, _release(lora_id))
        with pytest.raises(RuntimeError, match="pinned"):
            vllm_lora.adopt_lora(model, _release(4))
        assert [lora.id for lora, _ in vllm_lora.adapters(model)] == [1, 2, 3]

        model.lora_manager.activate_adapter(2)
        require(vllm_lora.drop_lora(model, 2), "LoRAModelManager.remove_adapter")
        assert not vllm_lora.drop_lora(model, 2)
        assert vllm_lora.adapter_at(model, 0) is None
        vllm_lora.adopt_lora(model, _release(4))

    def test_warm_up_writes_nothing(self, managed: tuple[Any, Any]) -> None:
        model, site = managed
        dummy = model.lora_manager.create_dummy_lora(1, 8, {})
        require(set(dummy.loras) == {"mlp.unlearn"}, "create_dummy_lora reads lora_a_stacked and lora_b_stacked")
        model.lora_manager.add_adapter(dummy)
        model.lora_manager.activate_adapter(1)

        assert site.rank_of_slot.tolist() == [0] * (DEFAULT_SLOTS + SLOTS)

    def test_the_plain_model_is_a_route_without_layers(self, managed: tuple[Any, Any], tmp_path: Path) -> None:
        from unlearn_serve.serving.worker_routes import WorkerRoutes

        model, site = managed
        layers = EnforcedLayers({0: site}, site.routing, site.routes, num_blocks=1, hidden_size=D, max_rank=RANK)
        site.write(1, torch.ones(4, D), torch.ones(D, 4), 0)
        site.routes.move_default(1, frozenset())
        with pytest.raises(NotEnforced, match="--allow-plain"):
            WorkerRoutes(model, layers, ServingConfig(store="/none")).stage("plain", 5, str(tmp_path))
        routes = WorkerRoutes(model, layers, ServingConfig(store="/none", allow_plain=True))
        routes.stage("plain", 5, str(tmp_path))
        assert routes.staging(5) == ("ready", None)
        routes.adopt(5)
        model.lora_manager.activate_adapter(5)
        site.routing.slot_of_token[:2] = torch.tensor([-1, 0])
        x = torch.randn(2, D)
        y = site(x)

        assert torch.equal(y[1], x[1])
        assert not torch.equal(y[0], x[0])
        assert routes.status() == [{"release": "plain", "slot": 0, "covered": True}]
        site.routes.move_default(1, frozenset("a"))
        assert torch.equal(site(x)[1], site(x[[1, 0]])[0]), "it covers nothing: back to the default"

    def test_an_adapter_that_is_held_is_not_loaded_again(self) -> None:
        from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

        source = inspect.getsource(LRUCacheWorkerLoRAManager.add_adapter)
        require("lora_request.lora_int_id not in self.list_adapters()" in source, "when an adapter is read from disk")
        require("or lora_request.load_inplace" in source, "load_inplace, which routes never set")


class TestServer:
    """The API server's names."""

    def test_names_and_numbers(self) -> None:
        from vllm.entrypoints.openai.models.serving import OpenAIServingModels
        from vllm.utils.counter import AtomicCounter

        source = inspect.getsource(OpenAIServingModels.__init__)
        for attribute in ("base_model_paths", "lora_requests: dict[str, LoRARequest]", "lora_id_counter"):
            require(f"self.{attribute}" in source, f"OpenAIServingModels.{attribute}")
        models = SimpleNamespace(
            base_model_paths=[SimpleNamespace(name="base")], lora_requests={}, lora_id_counter=AtomicCounter(0)
        )
        state = SimpleNamespace(openai_serving_models=models)
        assert vllm_lora.base_names(state) == ["base"]
        require([vllm_lora.next_lora_id(state) for _ in range(2)] == [1, 2], "AtomicCounter.inc")
        vllm_lora.name_adapter(state, "base@x", 5, "/path")
        (request,) = vllm_lora.named_adapters(state).values()
        require((request.lora_name, request.lora_int_id, request.lora_path) == ("base@x", 5, "/path"), "LoRARequest")
        require(request.load_inplace is False, "LoRARequest.load_inplace")
        vllm_lora.forget_adapter(state, "base@x")
        assert vllm_lora.named_adapters(state) == {}

    def test_a_name_in_that_mapping_is_served_without_a_resolver(self) -> None:
        from vllm.entrypoints.serve.engine.serving import BaseServing

        source = inspect.getsource(BaseServing._check_model)
        found, resolver = source.find("in self.models.lora_requests"), source.find("resolve_lora")
        require(0 <= found < resolver, "BaseServing._check_model")
        require("return self.models.lora_requests[request.model]" in inspect.getsource(BaseServing), "the adapter used")

    def test_state_has_the_models_before_plugins_start(self) -> None:
        from vllm.entrypoints.launchers.api_server import app_state

        source = inspect.getsource(app_state)
        static, plugins = source.find("openai_serving_models.init_static_loras()"), source.find("init_endpoint_plugins")
        require(0 <= static < source.rfind("init_endpoint_plugins_state("), "init_app_state")
        assert plugins >= 0

    def test_requests_in_the_engine_are_known_by_adapter(self) -> None:
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.output_processor import OutputProcessor, RequestState

        require("self.output_processor = OutputProcessor(" in inspect.getsource(AsyncLLM.__init__), "AsyncLLM")
        require("self.request_states: dict[str, RequestState]" in inspect.getsource(OutputProcessor.__init__), "states")
        require("self.lora_name = " in inspect.getsource(RequestState.__init__), "RequestState.lora_name")
        states = {"1": SimpleNamespace(lora_name="base@x"), "2": SimpleNamespace(lora_name=None)}
        engine = SimpleNamespace(output_processor=SimpleNamespace(request_states=states))
        assert vllm_lora.in_engine(engine, "base@x")
        assert not vllm_lora.in_engine(engine, "base@y")

    def test_statistics_are_told_after_the_requests_have_moved_on(self) -> None:
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.output_processor import OutputProcessor

        source = inspect.getsource(AsyncLLM._run_output_handler)
        processed, recorded = source.find(".process_outputs("), source.find(".record(")
        require(0 <= processed < recorded, "AsyncLLM's output handler: route_tokens.py counts in between")
        finished = inspect.getsource(OutputProcessor._update_stats_from_finished)
        require("request_id=req_state.external_req_id" in finished, "FinishedRequestStats.request_id")

    def test_the_id_of_a_request_is_the_headers(self) -> None:
        from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
        from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
        from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
        from vllm.entrypoints.serve.engine.serving import BaseServing

        from unlearn_serve.serving.route_middleware import REQUEST_ID_HEADER

        raw = SimpleNamespace(headers=Headers({REQUEST_ID_HEADER: "mine"}))
        require(BaseServing._base_request_id(raw, "other") == "mine", "BaseServing._base_request_id")
        for serving in (OpenAIServingChat, OpenAIServingCompletion):
            source = inspect.getsource(serving)
            require("self._base_request_id(raw_request, request.request_id)" in source, f"{serving.__name__}: its id")
        require("request_id" in ResponsesRequest.model_fields, "ResponsesRequest.request_id")

    def test_block_hashes_carry_name_and_path(self) -> None:
        from vllm.v1.core import kv_cache_utils

        request = SimpleNamespace(lora_request=SimpleNamespace(lora_name="n", lora_path="p"))
        keys = kv_cache_utils._gen_lora_extra_hash_keys(request)
        require(keys == [("lora", "n", "p")], f"what separates the KV of routes: {keys}")

    def test_adapters_beyond_the_slots_wait_in_the_scheduler(self) -> None:
        from vllm.v1.core.sched.scheduler import Scheduler

        source = inspect.getsource(Scheduler.schedule)
        require("len(scheduled_loras) == self.lora_config.max_loras" in source, "Scheduler.schedule")

    def test_the_header_that_replaces_model(self) -> None:
        from model_hosting_container_standards.sagemaker.lora.constants import SageMakerLoRAApiHeader

        from unlearn_serve.serving.route_middleware import ADAPTER_HEADER

        name = SageMakerLoRAApiHeader.ADAPTER_IDENTIFIER
        require(name.lower() == ADAPTER_HEADER, f"the header of /invocations: {name}")
