"""Three tensor parallel workers of the real model, each a process: a swap is on all of them or on none."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapters import write_random_adapter
from support.engine import engine_arguments, log_probabilities_of, set_environment
from support.file_limits import no_more_files
from support.stopped import stopped
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.errors import SwapError
from unlearn_serve.layers import load_adapter
from unlearn_serve.serving.swap import Swapper, SwapUndone
from unlearn_serve.serving.workers import Workers
from unlearn_serve.store import Store

pytestmark = [pytest.mark.engine, pytest.mark.model]

WORKERS = 3  # of the model's 9 heads and 3 KV heads
TEXT = "Romeo and Juliet is a play by"
# fp32 on both sides: order of sums only, through 30 blocks; a sum over the ranks is one more order.
TOLERANCE = 4e-3
TOKENS = 30


@dataclass
class World:
    """One engine, and two releases by digest, with what transformers computes under each."""

    engine: Any
    loop: asyncio.AbstractEventLoop
    folder: Path
    prompt: list[int]
    expected: dict[str, torch.Tensor]
    asked: int = 0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def live(self) -> str:
        """The release that all ranks report, each with all sites."""
        statuses = await Swapper(self.engine, stage_timeout_seconds=60).workers()
        found = [(one["engine"], one["rank"], len(one["sites"])) for one in statuses]
        assert found == [(0, rank, 30) for rank in range(WORKERS)]
        assert len({one["pid"] for one in statuses}) == WORKERS
        (release,) = {one["release"] for one in statuses}
        assert release is not None
        return release

    async def other(self) -> tuple[str, str]:
        """What is live, and the release that is not."""
        live = await self.live()
        return live, next(release for release in self.expected if release != live)

    async def outputs(self, prompt: list[int], adapter: Any = None, **sampling: Any) -> AsyncIterator[Any]:
        from vllm import SamplingParams

        self.asked += 1
        parameters = SamplingParams(temperature=0, **sampling)
        named = {"lora_request": adapter} if adapter else {}
        async for output in self.engine.generate({"prompt_token_ids": prompt}, parameters, str(self.asked), **named):
            yield output

    async def log_probabilities(self, adapter: Any = None) -> torch.Tensor:
        async for output in self.outputs(self.prompt, adapter, max_tokens=1, prompt_logprobs=-1, detokenize=False):
            last = output
        return log_probabilities_of(last)

    async def assert_computes(self, release: str, adapter: Any = None) -> None:
        got = await self.log_probabilities(adapter)
        torch.testing.assert_close(got, self.expected[release], rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensor-parallel")


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, torch.Tensor]:
    """Two releases, the first promoted, and what transformers computes for TEXT under each, on one processor."""
    base = ensure_checkpoint()
    store = Store.open(str(folder / "store"), create=True)
    tokens = AutoTokenizer.from_pretrained(base)(TEXT, return_tensors="pt")["input_ids"]
    found = {}
    for seed in range(2):
        adapter = write_random_adapter(base, folder / str(seed), seed=seed, rank=16, scale=0.3)
        model = load_adapter(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval(), adapter)
        with torch.no_grad():
            found[store.publish(adapter)] = model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
    first, second = found.values()
    assert (first - second).abs().max() > 100 * TOLERANCE, "the releases must differ, or this shows nothing"
    store.promote(next(iter(found)), "production", actor="test")
    return found


@pytest.fixture(scope="module")
def world(folder: Path, expected: dict[str, torch.Tensor]) -> Iterator[World]:
    loop = asyncio.new_event_loop()
    with pytest.MonkeyPatch.context() as environment:
        set_environment(environment)
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        ours = {"routes": 1, "max_rank": 16}
        arguments = engine_arguments(ensure_checkpoint(), folder / "store", folder / "state", **ours)
        lora = {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 3, "lora_target_modules": ["unlearn"]}
        small = {"dtype": "float32", "max_model_len": 128, "max_num_seqs": 4, "max_logprobs": -1}

        async def start() -> Any:
            settings = {**arguments, **lora, **small, "tensor_parallel_size": WORKERS}
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**settings))

        engine = loop.run_until_complete(start())
        prompt = AutoTokenizer.from_pretrained(ensure_checkpoint())(TEXT)["input_ids"]
        yield World(engine, loop, folder, prompt, expected)

        async def stop() -> None:
            engine.shutdown()  # closes its sockets on this loop: left open, they would hang whoever collects them
            await asyncio.sleep(0.1)

        loop.run_until_complete(stop())
    loop.close()


def test_all_workers_start_on_the_release_and_compute_what_one_does(world: World) -> None:
    """The bug: a layer that acts before the sum over the ranks, or that a rank has only a slice of."""

    async def scenario() -> None:
        await world.assert_computes(await world.live())

    world.run(scenario())


def test_a_swap_under_streams_is_on_every_worker(world: World) -> None:
    async def scenario() -> None:
        old, new = await world.other()
        pids = [one["pid"] for one in await Workers(world.engine).status()]

        async def stream(number: int) -> int:
            count = 0
            async for output in world.outputs([*world.prompt, number], max_tokens=TOKENS, ignore_eos=True):
                count = len(output.outputs[0].token_ids)
            return count

        swapper = Swapper(world.engine, stage_timeout_seconds=60)
        with stopped(*pids):  # not one token comes before all is under way
            streams = [asyncio.create_task(stream(number)) for number in range(3)]
            await asyncio.sleep(1)
            swap = asyncio.create_task(swapper.swap(new, previous=old, when_live=lambda: None))
            await asyncio.sleep(1)
        await swap
        assert not any(task.done() for task in streams), "they were under way"
        assert await asyncio.gather(*streams) == [TOKENS] * 3
        assert await world.live() == new
        await world.assert_computes(new)

    world.run(scenario())


def test_a_worker_that_cannot_stage_keeps_all_on_the_earlier_release(world: World) -> None:
    async def scenario() -> None:
        old, new = await world.other()
        swapper = Swapper(world.engine, stage_timeout_seconds=60)
        pids = [one["pid"] for one in await swapper.workers()]
        with no_more_files(pids[1]), pytest.raises(SwapError, match=f"^worker 1 could not stage {new}") as caught:
            await swapper.swap(new, previous=old, when_live=lambda: pytest.fail("it is not live"))
        assert not isinstance(caught.value, SwapUndone), "nothing was paused"
        assert await _staged(Workers(world.engine)) == ["ready", "failed", "ready"], "the others could have"
        assert await world.live() == old
        await world.assert_computes(old)
        await swapper.swap(new, previous=old, when_live=lambda: None)
        assert await world.live() == new

    world.run(scenario())


async def _staged(workers: Workers) -> list[str]:
    """What came of staging in each worker, once none is at it."""
    while "busy" in (states := [one["staging"] for one in await workers.status()]):
        await asyncio.sleep(0.01)
    return states


class LosesWhatOneStaged:
    """An engine client that, before it pauses, lets worker 1 alone stage what is live in the place of the next."""

    def __init__(self, engine: Any, live: str) -> None:
        self._engine, self._live = engine, live

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def pause_generation(self, **how: Any) -> None:
        workers = Workers(self._engine)
        others = [one["pid"] for one in await workers.status() if one["rank"] != 1]
        with no_more_files(*others):
            await workers.call("unlearn_stage", self._live)
            assert await _staged(workers) == ["failed", "ready", "failed"]
        await self._engine.pause_generation(**how)


def test_where_one_worker_does_not_flip_those_that_did_flip_back(world: World) -> None:
    """The bug: vLLM reads no answer behind the first that failed, and takes it for the answer to the next call."""

    async def scenario() -> None:
        old, new = await world.other()
        swapper = Swapper(LosesWhatOneStaged(world.engine, old), stage_timeout_seconds=60)
        with pytest.raises(SwapUndone, match=r"^worker 1: SwapError: flip: expected staged release"):
            await swapper.swap(new, previous=old, when_live=lambda: pytest.fail("it is not live"))
        assert await world.live() == old
        assert await world.live() == old, "answers still belong to their calls"
        await world.assert_computes(old)
        await Swapper(world.engine, stage_timeout_seconds=60).swap(new, previous=old, when_live=lambda: None)
        assert await world.live() == new
        await world.assert_computes(new)

    world.run(scenario())


def test_a_route_is_computed_by_all_workers_beside_the_default(world: World) -> None:
    async def scenario() -> None:
        live, other = await world.other()
        route = await _hold(world, other)
        await asyncio.gather(world.assert_computes(live), world.assert_computes(other, route))

    world.run(scenario())


async def _hold(world: World, release: str) -> Any:
    """Bring a release to all workers as `serving/routes.py` does; returns its LoRARequest."""
    from vllm.lora.request import LoRARequest

    workers, path = Workers(world.engine), str(world.folder / "routes" / release)
    await workers.call("unlearn_stage_route", release, 7, path)
    while any(state == "busy" for state, _ in await workers.call("unlearn_route_staging", 7)):
        await asyncio.sleep(0.01)
    await workers.call("unlearn_adopt_route", 7)
    return LoRARequest(lora_name=f"base@{release}", lora_int_id=7, lora_path=path)
