"""What a vLLM worker has when it builds its model, in this process and without an engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.server import free_port


def create_config(model: Path, **options: Any) -> Any:
    """The VllmConfig that `vllm serve MODEL` with these options builds."""
    from vllm.engine.arg_utils import EngineArgs

    defaults = {"enforce_eager": True, "max_model_len": 128, "max_num_seqs": 4, "skip_tokenizer_init": True}
    return EngineArgs(model=str(model), **{**defaults, **options}).create_engine_config()


@contextmanager
def lone_worker(config: Any) -> Iterator[None]:
    """The process groups of a single worker."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import cleanup_dist_env_and_memory, init_distributed_environment, initialize_model_parallel

    with set_current_vllm_config(config):
        init_distributed_environment(
            world_size=1,
            rank=0,
            local_rank=0,
            distributed_init_method=f"tcp://127.0.0.1:{free_port()}",
            backend="gloo",
        )
        initialize_model_parallel(1, 1)
        try:
            yield
        finally:
            cleanup_dist_env_and_memory()


@contextmanager
def pipeline_stage(config: Any, rank: int, stages: int) -> Iterator[None]:
    """The same for the worker of one of several pipeline stages, as far as building its model goes."""
    from vllm.distributed import parallel_state

    with lone_worker(config):
        whole = parallel_state.get_pp_group()
        parallel_state._PP = SimpleNamespace(
            rank_in_group=rank, world_size=stages, is_first_rank=rank == 0, is_last_rank=rank == stages - 1
        )
        try:
            yield
        finally:
            parallel_state._PP = whole
