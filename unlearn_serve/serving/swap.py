"""The swap: from one release to the next on every worker, or on none, with no request failed and no stale KV kept."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from unlearn_serve.errors import NotEnforced, SwapError

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

    from unlearn_serve.serving.worker import WorkerStatus

_POLL_STAGING_SECONDS = 0.01


class SwapUndone(SwapError):
    """The swap failed when generation was to be paused, or was; every worker is back on the earlier release."""


class SwapBroken(SwapError):
    """The swap failed and could not be undone: generation stays paused, nothing may be served."""


@dataclass(frozen=True, kw_only=True)
class SwapTimes:
    """How long a swap took, in milliseconds."""

    stage_ms: float
    stall_ms: float
    live_at: float
    """Unix time, seconds, at which all workers had flipped."""


class Swapper:
    """Runs the swap protocol, mode `recompute`, against one engine. Not reentrant: the caller serialises."""

    def __init__(self, engine: "EngineClient", *, stage_timeout_seconds: float) -> None:
        self._engine = engine
        self._stage_timeout = stage_timeout_seconds

    async def workers(self) -> "list[WorkerStatus]":
        """Ask every worker what it serves.

        Raises:
            NotEnforced: a worker has no sites, or no extension that could tell.
        """
        try:
            return cast("list[WorkerStatus]", await self._engine.collective_rpc("unlearn_status"))
        except Exception as error:
            raise NotEnforced(f"the workers cannot report an enforced release: {error}") from error

    async def swap(self, release: str, *, previous: str | None, when_live: Callable[[], None]) -> SwapTimes:
        """Make `release` live on every worker.

        1. stage on all workers, while serving goes on; 2. pause generation, keeping every request; 3. flip on all
        workers; 4. forget all KV computed under the earlier release: running requests are computed anew;
        5. resume. `when_live` is called between 4 and 5, before the first token under the new release.

        Args:
            release: digest to make live.
            previous: digest that is live now, None for the plain model; what a failed swap goes back to.
            when_live: must not raise.

        Raises:
            SwapError: staging failed somewhere; nothing was paused, nothing has changed.
            SwapUndone: see there.
            SwapBroken: see there.
        """
        started = time.perf_counter()
        await self._stage(release)
        staged = time.perf_counter()
        try:
            await self._engine.pause_generation(mode="keep", clear_cache=False)
            await self._engine.collective_rpc("unlearn_flip", args=(release,))
            live_at = time.time()
            if not await self._engine.reset_prefix_cache(reset_running_requests=True):
                raise SwapError("the engine did not drop the KV cache of the earlier release")
        except Exception as error:
            await self._undo(previous, error)
            raise SwapUndone(f"{error}; {previous or 'the plain model'} keeps serving") from error
        when_live()
        try:
            await self._engine.resume_generation()
        except Exception as error:
            raise SwapBroken(
                f"{release} is live, but generation did not resume ({error}); restart the server"
            ) from error
        resumed = time.perf_counter()
        return SwapTimes(
            stage_ms=(staged - started) * 1e3,
            stall_ms=(resumed - staged) * 1e3,
            live_at=live_at,
        )

    async def _stage(self, release: str) -> None:
        try:
            await self._engine.collective_rpc("unlearn_stage", args=(release,))
        except Exception as error:
            raise SwapError(f"the workers could not begin to stage {release}: {error}") from error
        deadline = time.monotonic() + self._stage_timeout
        while True:
            workers = await self.workers()
            failed = [worker for worker in workers if worker["staging"] == "failed"]
            if failed:
                raise SwapError(f"worker {failed[0]['rank']} could not stage {release}: {failed[0]['error']}")
            if all(worker["staging"] == "ready" and worker["staged"] == release for worker in workers):
                return
            if time.monotonic() > deadline:
                slow = [worker["rank"] for worker in workers if worker["staging"] != "ready"]
                raise SwapError(f"workers {slow} did not stage {release} within {self._stage_timeout:g} s")
            await asyncio.sleep(_POLL_STAGING_SECONDS)

    async def _undo(self, previous: str | None, cause: Exception) -> None:
        """Go back to `previous` on every worker and resume; the KV of both releases is dropped."""
        try:
            await self._engine.collective_rpc("unlearn_restore", args=(previous,))
            if not await self._engine.reset_prefix_cache(reset_running_requests=True):
                raise SwapError("the engine did not drop the KV cache")
            await self._engine.resume_generation()
        except Exception as error:
            raise SwapBroken(f"swap failed ({cause}) and could not be undone ({error}); restart it") from error
