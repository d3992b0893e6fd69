"""The swap: from one release to the next on every worker, or on none, with no request failed and no stale KV kept."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from unlearn_serve.errors import NotEnforced, SwapError
from unlearn_serve.serving.config import SwapMode

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

    from unlearn_serve.serving.worker import WorkerStatus

logger = logging.getLogger("vllm.unlearn_serve")

_POLL_STAGING_SECONDS = 0.01


class SwapUndone(SwapError):
    """The swap failed when generation was to be paused, or was; every worker is back on the earlier release."""


class SwapBroken(SwapError):
    """The swap failed and could not be undone: generation stays paused, nothing may be served."""


@dataclass(frozen=True, kw_only=True)
class SwapTimes:
    """How long a swap took, in milliseconds."""

    mode: SwapMode
    stage_ms: float
    drain_ms: float
    """How long running requests were waited for while new ones queued; 0 in other modes than `drain`."""
    stall_ms: float
    """No token was computed for so long: from the end of the drain, if any, until generation resumed."""
    live_at: float
    """Unix time, seconds, at which all workers had flipped."""


class Swapper:
    """Runs the swap protocol against one engine. Not reentrant: the caller serialises.

    What becomes of requests that run when the swap begins, by mode; later ones start under the new release in all:

    - `recompute`: they go on under the new release, their KV computed anew;
    - `drain`: they finish under the earlier release, while new ones wait; those that have not finished after
      `drain_timeout_seconds` are recomputed, so that a deletion goes live in any case;
    - `abort`: they end at once, with finish reason `abort` and what they have answered so far.
    """

    def __init__(
        self, engine: "EngineClient", *, stage_timeout_seconds: float, drain_timeout_seconds: float = 60.0
    ) -> None:
        self._engine = engine
        self._stage_timeout = stage_timeout_seconds
        self._drain_timeout = drain_timeout_seconds

    async def workers(self) -> "list[WorkerStatus]":
        """Ask every worker what it serves.

        Raises:
            NotEnforced: a worker has no sites, or no extension that could tell.
        """
        try:
            return cast("list[WorkerStatus]", await self._engine.collective_rpc("unlearn_status"))
        except Exception as error:
            raise NotEnforced(f"the workers cannot report an enforced release: {error}") from error

    async def swap(
        self, release: str, *, previous: str | None, when_live: Callable[[], None], mode: SwapMode = "recompute"
    ) -> SwapTimes:
        """Make `release` live on every worker.

        1. stage on all workers, while serving goes on; 2. pause generation, as `mode` says; 3. flip on all workers;
        4. forget all KV computed under the earlier release: requests that still run are computed anew; 5. resume.
        `when_live` is called between 4 and 5, before the first token under the new release.

        Args:
            release: digest to make live.
            previous: digest that is live now, None for the plain model; what a failed swap goes back to.
            when_live: must not raise.
            mode: what becomes of the requests that run, see the class.

        Raises:
            SwapError: staging failed somewhere; nothing was paused, nothing has changed.
            SwapUndone: see there.
            SwapBroken: see there.
        """
        started = time.perf_counter()
        await self._stage(release)
        staged = time.perf_counter()
        drained = staged
        try:
            if mode == "drain":
                await self._drain()
                drained = time.perf_counter()
            else:
                await self._engine.pause_generation(mode="abort" if mode == "abort" else "keep", clear_cache=False)
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
            mode=mode,
            stage_ms=(staged - started) * 1e3,
            drain_ms=(drained - staged) * 1e3,
            stall_ms=(resumed - drained) * 1e3,
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

    async def _drain(self) -> None:
        """Pause once the running requests have finished, or once they have had their time."""
        # Not cancelled on time-out: the engine answers a pause that it has begun, and that answer must find its call.
        drained = asyncio.create_task(self._engine.pause_generation(mode="wait", clear_cache=False))
        done, _ = await asyncio.wait({drained}, timeout=self._drain_timeout)
        if not done:
            logger.warning(
                "unlearn-serve: requests still run after %g s of draining; recomputing them", self._drain_timeout
            )
            await self._engine.pause_generation(mode="keep", clear_cache=False)
        await drained

    async def _undo(self, previous: str | None, cause: Exception) -> None:
        """Go back to `previous` on every worker and resume; the KV of both releases is dropped."""
        try:
            await self._engine.collective_rpc("unlearn_restore", args=(previous,))
            if not await self._engine.reset_prefix_cache(reset_running_requests=True):
                raise SwapError("the engine did not drop the KV cache")
            await self._engine.resume_generation()
        except Exception as error:
            raise SwapBroken(f"swap failed ({cause}) and could not be undone ({error}); restart it") from error
