"""Every fact about vLLM that serving leans on, against the installed release, with no engine started.

A failure here names what a vLLM release moved: change `unlearn_serve/serving/vllm_internals.py` (or the module that the
message names) before anything else.
"""

import asyncio
import copy
import inspect
import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import httpx
import pytest
import torch
import vllm
from fastapi import FastAPI
from starlette.datastructures import State
from support.engine import set_environment
from support.tiny_models import write_tiny_model
from support.vllm_config import create_config, lone_worker
from support.vllm_facts import require, require_parameters
from vllm.config import MultiModalConfig
from vllm.engine.protocol import EngineClient
from vllm.plugins.endpoint_plugins.interface import attach_endpoint_plugins, init_endpoint_plugins_state
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCore, EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient, DPLBAsyncMPClient, EngineCoreClient
from vllm.v1.worker.worker_base import WorkerBase, WorkerWrapperBase

from unlearn_serve.serving import vllm_internals
from unlearn_serve.serving.ledger import TokenLedger
from unlearn_serve.serving.middleware import NameRelease
from unlearn_serve.serving.models import WORKER_EXTENSION, register_models
from unlearn_serve.serving.plugin import UnlearningEndpoints


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real VllmConfig of a checkpoint with 2 blocks and d = 64."""
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch)
        yield create_config(write_tiny_model(tmp_path_factory.mktemp("internals") / "tiny"))


def test_the_release_is_the_tested_one() -> None:
    require(
        vllm.__version__.split("+")[0] == vllm_internals.TESTED_VLLM,
        f"the release itself; tested with {vllm_internals.TESTED_VLLM}: run the whole suite, then raise TESTED_VLLM",
    )


class TestConfig:
    """vllm_internals reads these from VllmConfig."""

    def test_sizes(self, config: Any) -> None:
        require(vllm_internals.hidden_size(config) == 64, "ModelConfig.get_hidden_size()")
        require(vllm_internals.num_blocks(config) == 2, "ModelConfig.get_total_num_hidden_layers()")
        require(str(config.model_config.dtype) == "torch.bfloat16", "ModelConfig.dtype")

    def test_max_tokens_per_step(self, config: Any) -> None:
        scheduler, parallel = config.scheduler_config, config.parallel_config
        got = vllm_internals.max_tokens_per_step(config)
        require(got == max(scheduler.max_num_batched_tokens, 4) + parallel.tensor_parallel_size, "SchedulerConfig")

    def test_base_model_dir(self, config: Any) -> None:
        require((vllm_internals.base_model_dir(config) / "config.json").is_file(), "ModelConfig.model")
        require(hasattr(config.model_config, "revision"), "ModelConfig.revision")

    def test_local_blocks(self, config: Any) -> None:
        with lone_worker(config):
            require(vllm_internals.local_blocks(config) == range(2), "get_pp_group() or get_pp_indices()")

    def test_additional_config_and_worker_extension(self, config: Any) -> None:
        require(config.additional_config == {}, "VllmConfig.additional_config")
        require(config.parallel_config.worker_extension_cls == "", "ParallelConfig.worker_extension_cls")

    def test_unsupported_settings(self, config: Any) -> None:
        require(list(vllm_internals.unsupported_settings(config)) == [], "defaults")
        require(config.kv_transfer_config is None, "VllmConfig.kv_transfer_config")
        require(config.parallel_config.enable_elastic_ep is False, "ParallelConfig.enable_elastic_ep")

    def test_what_would_load_what_a_client_names_is_refused(self, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        require(config.model_config.enable_prompt_embeds is False, "ModelConfig.enable_prompt_embeds")
        require(config.model_config.multimodal_config is None, "ModelConfig.multimodal_config")
        require("enable_mm_embeds" in MultiModalConfig.__dataclass_fields__, "MultiModalConfig.enable_mm_embeds")

        with monkeypatch.context() as with_adapters:
            with_adapters.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
            (line,) = vllm_internals.unsupported_settings(config)
            assert line.startswith("VLLM_ALLOW_RUNTIME_LORA_UPDATING: "), "without --enable-lora too"
        monkeypatch.setattr(config.model_config, "enable_prompt_embeds", True)
        (line,) = vllm_internals.unsupported_settings(config)
        assert line.startswith("--enable-prompt-embeds")
        monkeypatch.setattr(config.model_config, "enable_prompt_embeds", False)
        monkeypatch.setattr(config.model_config, "multimodal_config", MultiModalConfig(enable_mm_embeds=True))
        (line,) = vllm_internals.unsupported_settings(config)
        assert line.startswith("--enable-prompt-embeds, --enable-mm-embeds: ")

    def test_development_routes_are_refused(self, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from vllm.entrypoints.launchers.app import build_app

        monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
        app = build_app(_parse("serve", "model", "--api-key", "secret", *_SETTINGS), ("generate",))

        require("/collective_rpc" in app.openapi()["paths"], "VLLM_SERVER_DEV_MODE: does it still open this route?")
        (line,) = vllm_internals.unsupported_settings(config)
        assert line.startswith("VLLM_SERVER_DEV_MODE: ")


class TestModels:
    """serving/models.py puts a lazy entry in front of each of vLLM's own."""

    def test_entries_load_our_subclass_of_the_original(self) -> None:
        from vllm.model_executor.models.llama import LlamaForCausalLM

        register_models()
        entry = vllm_internals.registered_models()["LlamaForCausalLM"]
        loaded = vllm_internals.load_model_class(entry)

        require(entry.module_name == "unlearn_serve.serving.models", "ModelRegistry.register_model('module:name')")
        require(issubclass(loaded, LlamaForCausalLM), "ModelRegistry.models or an entry's load_model_cls()")
        assert loaded is not LlamaForCausalLM
        assert loaded.__name__ == "LlamaForCausalLM"
        require_parameters(loaded.__init__, "vllm_config", "prefix")

    def test_models_are_built_by_keyword(self) -> None:
        from vllm.model_executor.model_loader.utils import initialize_model

        source = inspect.getsource(initialize_model)
        require("model_class(vllm_config=vllm_config, prefix=prefix)" in source, "initialize_model's call of the class")

    def test_inner_and_draft_models_are_told_by_a_prefix(self) -> None:
        from vllm.v1.spec_decode import draft_model

        require('prefix="draft_model"' in inspect.getsource(draft_model), "the draft model's prefix: it has no sites")

    def test_a_worker_gives_its_model(self) -> None:
        from vllm.v1.worker.cpu_worker import CPUWorker

        require(callable(CPUWorker.get_model), "Worker.get_model, used by vllm_internals.worker_model")
        source = inspect.getsource(WorkerBase.__init__)
        for attribute in ("self.rank = ", "self.vllm_config = "):
            require(attribute in source, f"WorkerBase: {attribute}")


class TestWorkerExtension:
    """--worker-extension-cls mixes serving/worker.py into vLLM's worker."""

    def test_injection(self) -> None:
        source = inspect.getsource(WorkerWrapperBase.init_worker)
        plugins, injection = source.find("load_general_plugins()"), source.find("worker_extension_cls")
        require(0 <= plugins < injection, "general plugins run before the extension's module is imported")
        require("worker_class.__bases__ + (" in source, "the extension becomes a base of the worker's class")

    def test_no_name_is_taken(self) -> None:
        from vllm.v1.worker.cpu_worker import CPUWorker

        register_models()  # the module refuses to be imported before
        from unlearn_serve.serving.worker import UnlearningWorker

        ours = {name for name in dir(UnlearningWorker) if not name.startswith("__")}
        assert {"unlearn_status", "unlearn_stage", "unlearn_flip", "unlearn_restore"} <= ours
        taken = ours & {name for base in CPUWorker.__mro__ if base is not UnlearningWorker for name in vars(base)}
        require(not taken, f"the worker has attributes of its own named {taken}")


class TestEngineClient:
    """The calls of serving/swap.py."""

    @pytest.mark.parametrize("client", [EngineClient, AsyncLLM])
    def test_signatures(self, client: type) -> None:
        require_parameters(client.pause_generation, "mode", "clear_cache")
        require_parameters(client.resume_generation)
        require_parameters(client.reset_prefix_cache, "reset_running_requests")
        require_parameters(client.collective_rpc, "method", "args")
        for name in ("pause_generation", "resume_generation", "reset_prefix_cache", "collective_rpc"):
            require(inspect.iscoroutinefunction(getattr(client, name)), f"{client.__name__}.{name} is a coroutine")

    def test_it_has_the_configuration(self) -> None:
        require("vllm_config" in EngineClient.__annotations__, "EngineClient.vllm_config")

    def test_pause_can_keep_abort_or_wait_for_requests(self) -> None:
        from vllm.v1.core.sched.interface import PauseState
        from vllm.v1.engine import PauseMode

        require({"keep", "abort", "wait"} <= set(get_args(PauseMode)), "the modes of pause_generation")
        require({"PAUSED_ALL", "PAUSED_NEW"} <= set(PauseState.__members__), "PauseState")
        source = inspect.getsource(EngineCoreProc.pause_scheduler)
        require('PauseState.PAUSED_ALL if mode == "keep" else PauseState.PAUSED_NEW' in source, "what a wait lets run")

    def test_a_wait_that_was_given_up_ends_with_a_later_pause(self) -> None:
        """A drain that takes too long: its call is cancelled, and its answer, when it comes, must do no harm."""
        from vllm.v1.engine import UtilityOutput
        from vllm.v1.engine.core_client import _process_utility_output

        async def answer_a_cancelled_call() -> None:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            _process_utility_output(UtilityOutput(call_id=1, failure_message="failed"), {1: future})

        asyncio.run(answer_a_cancelled_call())
        source = inspect.getsource(EngineCoreProc._notify_idle_state_callbacks)
        require("while self._idle_state_callbacks:" in source, "the engine, once idle, answers every pause")

    def test_a_reset_preempts_running_requests_and_drops_their_output_in_flight(self) -> None:
        from vllm.v1.core.sched.scheduler import Scheduler

        source = inspect.getsource(Scheduler.reset_prefix_cache)
        require("self._preempt_request(request, timestamp, drop_stale_output=True)" in source, "Scheduler's preemption")
        require("self.kv_cache_manager.reset_prefix_cache()" in source, "Scheduler drops the KV cache")


class TestEngines:
    """Data parallel engines: what serving/workers.py calls, and what it refuses."""

    @pytest.fixture(scope="class")
    def engines(self, config: Any) -> Iterator[Any]:
        with pytest.MonkeyPatch.context() as patch:
            set_environment(patch)
            yield create_config(Path(config.model_config.model), data_parallel_size=2)

    def test_settings_that_name_them(self, config: Any, engines: Any) -> None:
        parallel = engines.parallel_config
        require((parallel.data_parallel_size, parallel.data_parallel_size_local) == (2, 2), "--data-parallel-size")
        require(parallel.local_engines_only is False, "ParallelConfig.local_engines_only")
        require(config.parallel_config.data_parallel_size == 1, "ParallelConfig.data_parallel_size")
        require(vllm_internals.engine_index(config) == 0, "ParallelConfig.data_parallel_index")
        source = inspect.getsource(EngineCoreProc.run_engine_core)
        require("parallel_config.data_parallel_index = dp_rank" in source, "each engine knows its number")

    def test_engines_that_step_together_or_are_out_of_reach_are_refused(
        self, engines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert list(vllm_internals.unsupported_settings(engines)) == []
        mixture = create_config(write_tiny_model(tmp_path / "moe", family="mixtral"), data_parallel_size=2)
        (line,) = vllm_internals.unsupported_settings(mixture)
        assert line.startswith("--data-parallel-size: expected 1 for a mixture of experts, got 2")
        source = inspect.getsource(EngineCoreProc.run_engine_core)
        require("if data_parallel and vllm_config.model_config.is_moe:" in source, "which engines step together")
        monkeypatch.setattr(engines.parallel_config, "data_parallel_size_local", 1)
        (line,) = vllm_internals.unsupported_settings(engines)
        assert line.startswith("--data-parallel-size-local: expected all 2 engines on this machine, got 1")
        monkeypatch.setattr(engines.parallel_config, "data_parallel_external_lb", True)
        (line,) = vllm_internals.unsupported_settings(engines)
        assert line.startswith("--data-parallel-external-lb, --data-parallel-hybrid-lb, --data-parallel-rank: ")
        monkeypatch.setattr(engines.parallel_config, "enable_elastic_ep", True)
        assert list(vllm_internals.unsupported_settings(engines))[1].startswith("--enable-elastic-ep: ")

    def test_pause_resume_and_reset_reach_every_engine_and_return_when_all_have_answered(self) -> None:
        source = inspect.getsource(EngineCoreClient.make_async_mp_client)
        require("return DPLBAsyncMPClient(" in source, "the client of several engines")
        require_parameters(AsyncMPClient.call_utility_all_async, "method", "args")
        source = inspect.getsource(DPLBAsyncMPClient.call_utility_async)
        require("return (await self.call_utility_all_async(method, *args))[0]" in source, "a call is of all engines")
        for method, call in (
            ("pause_scheduler_async", 'call_utility_async("pause_scheduler", mode, clear_cache)'),
            ("resume_scheduler_async", 'call_utility_async("resume_scheduler")'),
            ("reset_prefix_cache_async", "call_utility_all_async("),
        ):
            require(call in inspect.getsource(getattr(AsyncMPClient, method)), f"AsyncMPClient.{method}")
            require(method not in vars(DPLBAsyncMPClient), f"DPLBAsyncMPClient.{method}")

    def test_all_workers_of_all_engines_answer(self, config: Any, engines: Any) -> None:
        class Core:
            async def call_utility_all_async(self, *call: Any) -> list[list[Any]]:
                require_parameters(EngineCore.collective_rpc, "method", "timeout", "args", "kwargs")
                assert call == ("collective_rpc", "method", None, (1, "two"), None)
                return [["a", "b"], ["c", "d"]]

        class Client:
            vllm_config = engines
            engine_core = Core()

            async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[str]:
                return [method, *args]

        several: Any = Client()
        assert asyncio.run(vllm_internals.call_workers(several, "method", [1, "two"])) == [["a", "b"], ["c", "d"]]
        source = inspect.getsource(AsyncLLM)
        require("self.engine_core = EngineCoreClient.make_async_mp_client(" in source, "AsyncLLM.engine_core")
        several.vllm_config = config
        assert asyncio.run(vllm_internals.call_workers(several, "method", ["one"])) == [["method", "one"]]

    def test_of_several_workers_answers_behind_a_failure_are_not_read(self) -> None:
        """Why serving/answers.py lets no call raise; should vLLM read them all, it may go."""
        from vllm.v1.executor.multiproc_executor import MultiprocExecutor

        source = inspect.getsource(MultiprocExecutor.collective_rpc)
        reading = source[source.find("for mq in response_mqs:") : source.find("responses.append(result)")]
        require("raise RuntimeError(" in reading, "how collective_rpc reads answers")


class TestApiServers:
    """Several API servers of one `vllm serve`: the first swaps, the others observe."""

    def test_each_knows_its_number(self, config: Any) -> None:
        from vllm.entrypoints.launchers.api_server import entry
        from vllm.v1.utils import APIServerProcessManager

        require(vllm_internals.api_server_index(config) == (0, 1), "ParallelConfig._api_process_rank and _count")
        source = inspect.getsource(entry.build_async_engine_client)
        require('engine_args._api_process_rank = client_config.get("client_index", 0)' in source, "numbers are set")
        source = inspect.getsource(APIServerProcessManager.__init__)
        require('multiprocessing.get_context("spawn")' in source, "one process starts all, with multiprocessing")
        require('"client_index": i' in source, "numbers count from 0")

    def test_where_one_dies_all_end(self) -> None:
        from vllm.v1.utils import wait_for_completion_or_failure

        source = inspect.getsource(wait_for_completion_or_failure)
        require("if proc is not None and proc.exitcode != 0:" in source, "wait_for_completion_or_failure")

    def test_statistics_of_a_step_are_recorded_before_its_answers_are_made(self) -> None:
        source = inspect.getsource(AsyncLLM._run_output_handler)
        processed, recorded = source.find("output_processor.process_outputs("), source.find(".record(")
        require(0 <= processed < recorded, "the output handler records a step after it has processed it")
        source = inspect.getsource(AsyncLLM.__init__)
        require("load_stat_logger_plugin_factories()" in source, "plugins record whatever flags say of statistics")


class TestTensorParallel:
    """A site must see the sum over the ranks: serving/models.py refuses blocks that sum later."""

    @pytest.mark.parametrize(("family", "sums_later"), [("llama", False), ("cohere", True)])
    def test_partial_sums_are_told(
        self, family: str, sums_later: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from vllm.model_executor.layers.linear import RowParallelLinear
        from vllm.model_executor.model_loader.utils import initialize_model

        monkeypatch.setenv("VLLM_PLUGINS", "")  # vLLM's own models
        config = create_config(write_tiny_model(tmp_path / family, family=family))
        with lone_worker(config):
            ffn = initialize_model(config).model.layers[0].mlp
        assert not vllm_internals.leaves_partial_sums(ffn), "one rank has the whole sum"
        require(isinstance(ffn.down_proj, RowParallelLinear), "RowParallelLinear")
        require(ffn.down_proj.tp_size == 1, "RowParallelLinear.tp_size")
        require(ffn.down_proj.reduce_results is not sums_later, "RowParallelLinear.reduce_results")
        ffn.down_proj.tp_size = 2
        assert vllm_internals.leaves_partial_sums(ffn) is sums_later

    def test_partial_sums_of_experts_are_told(self) -> None:
        from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig

        require("skip_final_all_reduce" in FusedMoEConfig.__dataclass_fields__, "FusedMoEConfig.skip_final_all_reduce")
        block, experts = torch.nn.Module(), torch.nn.Module()
        block.experts = experts
        for later in (False, True):
            experts.moe_config = SimpleNamespace(skip_final_all_reduce=later)  # type: ignore[assignment]
            assert vllm_internals.leaves_partial_sums(block) is later


class TestGeneralPlugins:
    """Fail closed: why serving/plugin.py imports nothing of weight and raises inside register()."""

    def test_what_register_raises_is_let_through(self, install: Callable[..., None]) -> None:
        install("vllm.general_plugins", "def register():\n    raise RuntimeError('raised by register')\n")

        with pytest.raises(RuntimeError, match="raised by register"):
            vllm.plugins.load_general_plugins()

    def test_what_an_import_raises_is_swallowed(self, install: Callable[..., None]) -> None:
        install("vllm.general_plugins", "raise RuntimeError('raised by import')\n")

        vllm.plugins.load_general_plugins()

    def test_ours_is_an_entry_point_of_all_three_groups(self) -> None:
        groups = (vllm.plugins.DEFAULT_PLUGINS_GROUP, vllm.plugins.ENDPOINT_PLUGINS_GROUP)
        for group in (*groups, vllm.plugins.STAT_LOGGER_PLUGINS_GROUP):
            require("unlearn_serve" in vllm.plugins.load_plugins_by_group(group), f"the entry point group {group}")


class TestEndpointPlugins:
    """serving/plugin.py: routes, and a start that fails where enforcement does."""

    def test_protocol(self) -> None:
        from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

        members = {name for name in vars(EndpointPlugin) if not name.startswith("_")}
        require(members == {"attach_router", "init_state"}, f"methods of EndpointPlugin: {members}")
        require(set(EndpointPlugin.__annotations__) == {"name", "required_tasks"}, "attributes of EndpointPlugin")
        for method in members:
            expected = list(inspect.signature(getattr(EndpointPlugin, method)).parameters)
            require_parameters(getattr(UnlearningEndpoints, method), *expected)

    def test_ours_is_loaded_only_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (ours,) = vllm.plugins.load_endpoint_plugins(("generate",))
        assert isinstance(ours, UnlearningEndpoints)
        monkeypatch.delenv("VLLM_PLUGINS")
        require(vllm.plugins.load_endpoint_plugins(("generate",)) == [], "endpoint plugins are opt-in")

    def test_what_attach_router_raises_is_let_through(self, install: Callable[..., None]) -> None:
        install("vllm.endpoint_plugins", _PLUGIN.format(attach="raise RuntimeError('by attach')", init="pass"))

        with pytest.raises(RuntimeError, match="by attach"):
            attach_endpoint_plugins(FastAPI(), ("generate",))

    def test_what_init_state_raises_is_let_through(self, install: Callable[..., None]) -> None:
        install("vllm.endpoint_plugins", _PLUGIN.format(attach="pass", init="raise RuntimeError('by init')"))
        app = FastAPI()
        attach_endpoint_plugins(app, ("generate",))

        with pytest.raises(RuntimeError, match="by init"):
            asyncio.run(init_endpoint_plugins_state(None, app.state, Namespace()))

    def test_state_is_initialised_before_the_server_is_ready(self) -> None:
        from vllm.entrypoints.launchers.api_server import app_state

        source = inspect.getsource(app_state)
        require("await init_endpoint_plugins_state(engine_client, state, args)" in source, "init_app_state")

    def test_the_api_key_guards_our_routes(self) -> None:
        from vllm.entrypoints.launchers.app import build_app

        app = build_app(_parse("serve", "model", "--api-key", "secret", *_SETTINGS), ("generate",))

        names = [middleware.cls.__name__ for middleware in app.user_middleware]  # outermost first
        require(names.index("AuthenticationMiddleware") < names.index(NameRelease.__name__), f"order of {names}")
        response = asyncio.run(_get(app, "/v1/unlearning/status"))
        require(response.status_code == 401, "--api-key guards paths under /v1")


class TestSystemFingerprint:
    """vllm_internals.set_system_fingerprint renames it on live serving objects."""

    def test_it_is_read_from_the_serving_object_for_each_response(self) -> None:
        from vllm.entrypoints.generate.base.serving import GenerateBaseServing
        from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
        from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

        require("self.system_fingerprint" in inspect.getsource(GenerateBaseServing.__init__), "where it is set")
        for serving in (OpenAIServingChat, OpenAIServingCompletion):
            assert issubclass(serving, GenerateBaseServing)
            source = inspect.getsource(serving)
            require("chunk.system_fingerprint = self.system_fingerprint" in source, f"{serving.__name__}, last chunk")
            require("system_fingerprint=self.system_fingerprint" in source, f"{serving.__name__}, whole response")

    def test_serving_objects_are_values_of_the_app_state(self) -> None:
        from vllm.entrypoints.generate import api_router
        from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

        source = inspect.getsource(api_router.init_generate_state)
        for name in ("openai_serving_chat", "openai_serving_completion"):
            require(f"state.{name} = " in source, f"state.{name}")
        state = State()
        state.chat = OpenAIServingChat.__new__(OpenAIServingChat)
        state.chat.system_fingerprint = "before"
        state.other = object()
        require(vllm_internals.set_system_fingerprint(state, "after") == 1, "starlette's State._state")
        assert state.chat.system_fingerprint == "after"


def test_api_keys_are_those_that_vllm_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.entrypoints.serve.middleware import register

    source = inspect.getsource(register.init_entrypoints_middleware)
    require("for key in (args.api_key or [envs.VLLM_API_KEY]) if key" in source, "where vLLM takes API keys from")
    assert vllm_internals.inference_keys(Namespace(api_key=None)) == []
    monkeypatch.setenv("VLLM_API_KEY", "from the environment")
    assert vllm_internals.inference_keys(Namespace(api_key=None)) == ["from the environment"]
    assert vllm_internals.inference_keys(_parse("serve", "m", "--api-key", "one", "two")) == ["one", "two"]


def test_errors_are_answered_as_vllm_does() -> None:
    """The app of an admin listener is our own; its handlers are vLLM's."""
    app = FastAPI()
    app.state.args = _parse("serve", "model")
    vllm_internals.answer_errors_as_vllm(app)

    @app.get("/")
    async def number(of: int) -> int:
        return of

    response = asyncio.run(_get(app, "/"))
    require(response.status_code == 400, "init_exception_handler: what is not valid")
    require(set(response.json()["error"]) == {"message", "type", "param", "code"}, "the form of errors")


def test_errors_show_clients_no_paths() -> None:
    shown = vllm_internals.without_paths("store '/srv/some/store' holds no release")
    require(shown == "store '<path>' holds no release", f"sanitize_message: {shown}")


class TestStatLogger:
    """serving/ledger.py counts tokens."""

    def test_base_class(self) -> None:
        from vllm.v1.metrics.loggers import StatLoggerBase, load_stat_logger_plugin_factories

        require(TokenLedger in load_stat_logger_plugin_factories(), "the entry point group vllm.stat_logger_plugins")
        require(not TokenLedger.__abstractmethods__, f"StatLoggerBase also wants {TokenLedger.__abstractmethods__}")
        for method in ("__init__", "record", "log_engine_initialized"):
            base = inspect.signature(getattr(StatLoggerBase, method)).parameters
            require(list(inspect.signature(getattr(TokenLedger, method)).parameters) == list(base), method)

    def test_iteration_stats(self) -> None:
        from vllm.v1.metrics.stats import IterationStats

        stats = IterationStats()
        require(stats.num_prompt_tokens == 0, "IterationStats.num_prompt_tokens")
        require(stats.num_generation_tokens == 0, "IterationStats.num_generation_tokens")
        require(stats.finished_requests == [], "IterationStats.finished_requests")

    def test_finish_reasons(self) -> None:
        from vllm.v1.engine import FinishReason
        from vllm.v1.metrics.stats import FinishedRequestStats

        names = [str(FinishedRequestStats(finish_reason=reason).finish_reason) for reason in FinishReason]
        require({"stop", "length", "abort"} <= set(names), f"finish reasons as text, got {names}")

    def test_scheduler_stats(self) -> None:
        from vllm.v1.metrics.stats import SchedulerStats

        require(SchedulerStats().running_lora_adapters == {}, "SchedulerStats.running_lora_adapters")


class TestPause:
    """vllm_internals.pause_generation takes AsyncLLM.pause_generation apart."""

    def test_what_vllm_does(self) -> None:
        from vllm.v1.engine.core_client import AsyncMPClient

        require_parameters(AsyncMPClient.pause_scheduler_async, "self", "mode", "clear_cache")
        source = inspect.getsource(AsyncLLM.pause_generation)
        calls = [line.strip() for line in source.splitlines() if line.strip().startswith("await")]
        require(
            calls
            == [
                "await self.renderer.clear_mm_cache_async()",
                "await self.engine_core.pause_scheduler_async(mode=mode, clear_cache=clear_cache)",
                "await asyncio.sleep(0.02)",
            ],
            "AsyncLLM.pause_generation: another step",
        )
        require("outputs_queue.put_nowait(outputs)" in inspect.getsource(AsyncMPClient), "AsyncMPClient.outputs_queue")

    def test_outputs_are_processed_by_what_the_processor_has_for_it_at_that_moment(self) -> None:
        """The step that follows a swap is named before it is answered: `call_before_outputs` relies on it."""
        source = inspect.getsource(AsyncLLM._run_output_handler)
        require("output_processor.process_outputs(" in source, "AsyncLLM._run_output_handler: process_outputs")
        calls: list[str] = []

        class Processor:
            def process_outputs(self, outputs: str, *, stats: str) -> str:
                calls.append(f"{outputs} {stats}")
                return "processed"

        engine = AsyncLLM.__new__(AsyncLLM)
        engine.output_processor = Processor()
        vllm_internals.call_before_outputs(engine, lambda: calls.append("looked"))
        assert engine.output_processor.process_outputs("outputs", stats="stats") == "processed"
        assert calls == ["looked", "outputs stats"]

    @pytest.mark.parametrize("servers", [1, 2])
    def test_returns_once_everything_before_it_has_been_passed_on(self, config: Any, servers: int) -> None:
        """However many turns of the loop the outputs need, and though new ones still come in."""
        passed_on: list[int] = []

        class Core:
            def __init__(self) -> None:
                self.outputs_queue: asyncio.Queue[int] = asyncio.Queue()

            async def pause_scheduler_async(self, *, mode: str, clear_cache: bool) -> None:
                assert (mode, clear_cache) == ("keep", False)
                for number in range(5):
                    self.outputs_queue.put_nowait(number)

        class Renderer:
            async def clear_mm_cache_async(self) -> None:
                pass

        async def pass_on(core: Core) -> None:
            while True:
                number = await core.outputs_queue.get()
                for _ in range(30):
                    await asyncio.sleep(0)
                passed_on.append(number)

        async def pause() -> None:
            engine = AsyncLLM.__new__(AsyncLLM)
            engine.engine_core = Core()
            engine.renderer = Renderer()
            engine.vllm_config = copy.copy(config)
            engine.vllm_config.parallel_config = copy.copy(config.parallel_config)
            engine.vllm_config.parallel_config._api_process_count = servers
            task = asyncio.create_task(pass_on(engine.engine_core))
            await vllm_internals.pause_generation(engine, "keep")
            assert passed_on == [0, 1, 2, 3, 4]
            task.cancel()

        asyncio.run(pause())


class TestCommandLine:
    """vllm_internals.run_vllm_serve builds the subcommand without vLLM's front door."""

    def test_the_subcommand(self) -> None:
        from vllm.entrypoints.cli.serve import ServeSubcommand

        require(ServeSubcommand().name == "serve", "ServeSubcommand.name")
        require_parameters(ServeSubcommand.validate, "args")
        require_parameters(ServeSubcommand.cmd, "args")
        source = inspect.getsource(vllm_internals.run_vllm_serve)
        for name in ("cli_env_setup", "configure_logging_from_args"):
            assert name in source
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
        from vllm.logger import configure_logging_from_args

        require_parameters(cli_env_setup)
        require_parameters(configure_logging_from_args, "args")

    def test_our_flags(self) -> None:
        settings = {"unlearn": {"store": "folder"}}
        flags = ("--additional-config", json.dumps(settings), "--worker-extension-cls", WORKER_EXTENSION)
        args = _parse("serve", "model", *flags)

        require(args.additional_config == settings, "--additional-config takes JSON")
        require(args.worker_extension_cls == WORKER_EXTENSION, "--worker-extension-cls")
        require(args.model_tag == "model", "the positional argument of `vllm serve`")
        require(args.api_server_count is None, "--api-server-count")


_SETTINGS = ("--additional-config", json.dumps({"unlearn": {"store": "folder"}}))

_PLUGIN = """
class Plugin:
    name = "tried"
    required_tasks = ("generate",)

    def attach_router(self, app):
        {attach}

    async def init_state(self, engine_client, state, args):
        {init}


register = Plugin
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Install a distribution with one plugin, `tried`, of the given group and source, for this test."""

    def write(group: str, source: str) -> None:
        module = f"plugin_{tmp_path.name}"
        (tmp_path / f"{module}.py").write_text(source)
        metadata = tmp_path / f"{module}-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(f"[{group}]\ntried = {module}:register\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("VLLM_PLUGINS", "tried")
        monkeypatch.setattr(vllm.plugins, "plugins_loaded", False)

    return write


def _parse(*argv: str) -> Namespace:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    return parser.parse_args(list(argv))


async def _get(app: FastAPI, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)
