"""The swap: from one release to the next on every worker, or on none, and no stale KV kept."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn_serve.errors import SwapError
from unlearn_serve.serving.config import DRAIN_TIMEOUT_SECONDS, SwapMode
from unlearn_serve.serving.vllm_internals import pause_generation
from unlearn_serve.serving.workers import Workers, names_of

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
    """What a swap did and how long it took, in milliseconds."""

    mode: SwapMode
    stage_ms: float
    drain_ms: float | None
    """How long new requests waited for running ones to finish; None in the other modes."""
    drained: bool | None
    """False where the drain took too long and what still ran was recomputed; None in the other modes."""
    stall_ms: float
    """How long nothing was computed: from the pause after staging and draining to the resumption."""
    live_at: float
    """Unix time, seconds, at which all workers had flipped."""


class Swapper:
    """Runs the swap protocol against all engines of a client. Not reentrant: the caller serialises."""

    def __init__(
        self,
        engine: "EngineClient",
        *,
        stage_timeout_seconds: float,
        drain_timeout_seconds: float = DRAIN_TIMEOUT_SECONDS,
    ) -> None:
        self._engine = engine
        self._workers = Workers(engine)
        self._stage_timeout = stage_timeout_seconds
        self._drain_timeout = drain_timeout_seconds

    async def workers(self) -> "list[WorkerStatus]":
        """Ask every worker what it serves.

        Raises:
            NotEnforced: a worker has no sites, or no extension that could tell.
        """
        return await self._workers.status()

    async def swap(
        self,
        release: str,
        *,
        previous: str | None,
        when_live: Callable[[], None],
        mode: SwapMode = "recompute",
        when_staged: Callable[[], Awaitable[None]] | None = None,
    ) -> SwapTimes:
        """Make `release` live on every worker.

        1. stage on all workers, while serving goes on; 2. pause generation; 3. flip on all workers; 4. forget all KV
        computed under the earlier release: requests that still run are computed anew; 5. resume. Between 1 and 2
        `when_staged` is awaited, and between 4 and 5, before the first token under the new release, `when_live` called.

        The mode says what becomes of requests that run at 2: `recompute` freezes them; `drain` first lets them finish,
        while new ones wait, and freezes those that take longer than the drain timeout; `abort` ends them, and those
        that wait for their turn. New requests always start under the new release.

        Cancelled, it goes back to `previous` as after a failure.

        Args:
            release: digest to make live.
            previous: digest that is live now, None for the plain model; what a failed swap goes back to.
            when_live: must not raise.
            mode: see above.
            when_staged: what it raises ends the swap.

        Raises:
            SwapError: staging failed somewhere, or `when_staged` did; nothing was paused, nothing has changed.
            SwapUndone: see there; what `abort` ended stays ended.
            SwapBroken: see there.
        """
        started = time.perf_counter()
        await self._stage(release)
        if when_staged is not None:
            await when_staged()
        staged = time.perf_counter()
        drained = await self._drain(previous) if mode == "drain" else None
        pausing = time.perf_counter()
        async with self._undone_on_failure(previous, frozen=True):
            await pause_generation(self._engine, "abort" if mode == "abort" else "keep")
            await self._workers.call("unlearn_flip", release)
            live_at = time.time()
            await self._forget_kv()
        try:
            when_live()
            await self._engine.resume_generation()
        except asyncio.CancelledError:
            await self._engine.resume_generation()  # said twice it does no harm; not heard, every request would hang
            raise
        except Exception as error:  # whatever vLLM raised, requests hang from here on
            raise SwapBroken(
                f"{release} is live, but generation did not resume ({error}); restart the server"
            ) from error
        resumed = time.perf_counter()
        return SwapTimes(
            mode=mode,
            stage_ms=(staged - started) * 1e3,
            drain_ms=None if drained is None else (pausing - staged) * 1e3,
            drained=drained,
            stall_ms=(resumed - pausing) * 1e3,
            live_at=live_at,
        )

    async def _stage(self, release: str) -> None:
        try:
            await self._workers.call("unlearn_stage", release)
        except Exception as error:  # vLLM raises whatever its executor met
            raise SwapError(f"the workers could not begin to stage {release}: {error}") from error
        deadline = time.monotonic() + self._stage_timeout
        while True:
            workers = await self.workers()
            failed = [worker for worker in workers if worker["staging"] == "failed"]
            if failed:
                raise SwapError(f"{names_of(failed[:1], workers)} could not stage {release}: {failed[0]['error']}")
            if all(worker["staging"] == "ready" and worker["staged"] == release for worker in workers):
                return
            if time.monotonic() > deadline:
                slow = [worker for worker in workers if worker["staging"] != "ready"]
                raise SwapError(f"{names_of(slow, workers)} did not stage {release} within {self._stage_timeout:g} s")
            await asyncio.sleep(_POLL_STAGING_SECONDS)

    async def _drain(self, previous: str | None) -> bool:
        """Let running requests finish while new ones wait; False where they did not within the drain timeout.

        vLLM's own wait has no timeout. Given up here, it ends in the engine as soon as the pause that follows is
        complete, or after an undone swap as soon as the engine is idle, and changes nothing there.
        """
        async with self._undone_on_failure(previous, frozen=False):
            wait = self._engine.pause_generation(mode="wait", clear_cache=False)
            try:
                await asyncio.wait_for(wait, self._drain_timeout)
            except TimeoutError:
                logger.warning(
                    "unlearn-serve: requests still run after a drain of %g s: they go on under the new release",
                    self._drain_timeout,
                )
                return False
            return True

    async def _forget_kv(self) -> None:
        if not await self._engine.reset_prefix_cache(reset_running_requests=True):
            raise SwapError("the engine did not drop the KV cache of the earlier release")

    @asynccontextmanager
    async def _undone_on_failure(self, previous: str | None, *, frozen: bool) -> AsyncIterator[None]:
        """Go back to `previous` on every worker and resume, whatever is raised inside.

        Args:
            previous: digest that was live, None for the plain model.
            frozen: no request is being computed, some workers may have flipped: the KV of both releases is dropped.
                Otherwise none has flipped, and requests run on.
        """
        try:
            yield
        except BaseException as cause:
            try:
                if frozen:
                    await self._workers.call("unlearn_restore", previous)
                    await self._forget_kv()
                await self._engine.resume_generation()
            except Exception as error:
                raise SwapBroken(f"swap failed ({cause!r}) and could not be undone ({error}); restart it") from error
            if isinstance(cause, Exception):
                raise SwapUndone(f"{cause}; {previous or 'the plain model'} keeps serving") from cause
            raise
