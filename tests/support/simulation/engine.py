"""vLLM's engine at its public surface: pause, resume, drop KV, and named calls in workers with real sites."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from support.simulation.faults import EngineFault, Faults
from unlearn_serve.format.manifest import BaseModelRef
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.models import ATTRIBUTE, register_models, start_on_release
from unlearn_serve.serving.slots import build_sites

register_models()  # the module of the workers refuses to be imported before
from unlearn_serve.serving.worker import UnlearningWorker  # noqa: E402

WORKERS = 2
MAX_RANK = 4


class SimulatedWorker(UnlearningWorker):
    """The product's worker extension, on a model that is its sites one behind the other, and nothing else."""

    def __init__(self, rank: int, vllm_config: Any, base: BaseModelRef) -> None:
        self.rank, self.vllm_config = rank, vllm_config
        config = ServingConfig.from_additional_config(vllm_config.additional_config)
        assert config is not None
        layers = build_sites(
            list(range(base.num_blocks)),
            num_blocks=base.num_blocks,
            hidden_size=base.hidden_size,
            max_rank=config.max_rank,
            max_tokens=1,
            dtype=torch.float32,
        )
        layers.base_model = base
        start_on_release(layers, config)
        self._model = nn.Module()
        object.__setattr__(self._model, ATTRIBUTE, layers)

    def get_model(self) -> nn.Module:
        return self._model

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        for site in self._unlearn_layers().sites.values():
            x = site(x)
        return x[0]


class SimulatedEngine:
    """Its one endless stream gets a token whenever anything happens while generation is not paused.

    Args:
        computed: called with what each worker computed for a token, [d].
        forgot: called when all KV is dropped.
    """

    def __init__(
        self,
        vllm_config: Any,
        base: BaseModelRef,
        faults: Faults,
        *,
        computed: Callable[[Sequence[torch.Tensor]], None],
        forgot: Callable[[], None],
    ) -> None:
        self.vllm_config = vllm_config
        self.ready = False
        """Whether requests are let in."""
        self.dead = self.paused = self.keeps_kv_once = False
        self.workers: list[SimulatedWorker] = []
        self._faults, self._computed, self._forgot = faults, computed, forgot
        self._x = torch.linspace(-1.0, 1.0, base.hidden_size)[None]
        for rank in range(WORKERS):
            faults.step("worker")
            self.workers.append(SimulatedWorker(rank, vllm_config, base))

    def decode(self) -> None:
        """Compute one token, if the engine can."""
        if self.ready and not (self.paused or self.dead or self._faults.dead):
            self._computed([worker.decode(self._x) for worker in self.workers])

    async def is_paused(self) -> bool:
        return self.paused

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        assert mode in ("keep", "wait", "abort")
        assert not clear_cache, "the swap drops KV itself, after the flip"
        async with self._call():
            self.paused = True

    async def resume_generation(self) -> None:
        async with self._call():
            self.paused = False

    async def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        async with self._call():
            kept, self.keeps_kv_once = self.keeps_kv_once, False
            if reset_running_requests and not kept:
                self._forgot()
        return not kept

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """Call `method` on all workers, and then raise what one of them raised, as vLLM's executor does."""
        results: list[Any] = []
        failed: Exception | None = None
        async with self._call():
            for worker in self.workers:
                try:
                    self._faults.step("worker")
                    results.append(getattr(worker, method)(*args))
                    self.until_staged(worker)
                    self._faults.step("worker")
                except Exception as error:
                    failed = failed or error
            if failed is not None:
                raise failed
            self._require_life()
        return results

    def until_staged(self, worker: SimulatedWorker) -> None:
        """Wait for the thread of a worker that stages, unless it hangs; so that every run takes the same steps."""
        staging = worker._unlearn_staging
        while staging is not None and staging.state == "busy" and not self._faults.holds(staging._thread):
            staging._thread.join(0.001)

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        self._require_life()
        self._faults.step("engine")
        self.decode()
        yield
        self._faults.step("engine")
        self.decode()

    def _require_life(self) -> None:
        if self.dead:
            raise EngineFault("EngineDeadError")


def vllm_config_of(model: str, settings: dict[str, Any]) -> Any:
    """What the product reads of a VllmConfig."""
    return SimpleNamespace(
        additional_config={"unlearn": {"max_rank": MAX_RANK, **settings}},
        model_config=SimpleNamespace(model=model, multimodal_config=None, enable_prompt_embeds=False),
        parallel_config=SimpleNamespace(
            data_parallel_size=1,
            data_parallel_index=0,
            enable_dbo=False,
            enable_elastic_ep=False,
            _api_process_rank=0,
            _api_process_count=1,
        ),
        compilation_config=SimpleNamespace(mode=None),
        kv_transfer_config=None,
        lora_config=None,
    )
