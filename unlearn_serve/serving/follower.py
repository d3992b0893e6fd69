"""Follows a channel: sees its moves, has them swapped in, and keeps the books."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from unlearn_serve.errors import NotEnforced, SwapError, UnlearnServeError
from unlearn_serve.serving import metrics
from unlearn_serve.serving.config import ServingConfig, SwapMode
from unlearn_serve.serving.followed_store import FollowedStore
from unlearn_serve.serving.last_applied import LastApplied
from unlearn_serve.serving.live import Live
from unlearn_serve.serving.records import AuditLog, Event, SwapRecord, now
from unlearn_serve.serving.swap import SwapBroken, Swapper, SwapTimes, SwapUndone
from unlearn_serve.serving.vllm_internals import set_system_fingerprint
from unlearn_serve.store import ChannelEntry

logger = logging.getLogger("vllm.unlearn_serve")

_RETRY_SECONDS = 10.0
"""A store that fails for a moment, a release that is repaired, or a full disk, must not need another promote."""


class Follower:
    """Polls the channel and applies its newest entry; one swap at a time."""

    def __init__(
        self,
        *,
        config: ServingConfig,
        swapper: Swapper,
        live: Live,
        app_state: Any,
        last_applied: LastApplied,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put the parts together. `clock` gives seconds; it decides when what was refused is tried again."""
        self.config = config
        self.swapper = swapper
        self.live = live
        self.audit = AuditLog(config.state_path / "audit.jsonl")
        self._app_state = app_state
        self._last_applied = last_applied
        self._clock = clock
        self._store = FollowedStore(config.open_store)
        self._lock = asyncio.Lock()
        self._applying: set[asyncio.Task[SwapRecord | None]] = set()
        self._seen_generation = live.generation
        self._retry_at = 0.0
        self._kept: ChannelEntry | None = None
        self._keep_at = math.inf

    @property
    def seen_generation(self) -> int:
        """The channel's newest generation that was tried or is live; the one that `live.refused` is about."""
        return self._seen_generation

    async def run(self) -> None:
        """Poll until cancelled, or broken. No other failure ends it: no deletion would go live any more, unnoticed."""
        while not self.live.broken:
            try:
                await self.apply_newest(again=self._clock() >= self._retry_at)
            except UnlearnServeError as error:
                logger.error("unlearn-serve: %s", error)
            except Exception:  # a follower that ends would leave the server on what is live now, for ever
                logger.exception("unlearn-serve: unexpected failure; the follower goes on")
            await asyncio.sleep(self.config.poll_seconds)

    async def apply_newest(self, *, again: bool, mode: SwapMode | None = None) -> SwapRecord | None:
        """Swap to the channel's newest entry; None where it is live already or the store cannot be read.

        Once begun it is not cut short: where the caller is cancelled (a client that hangs up), it goes on to its end.

        Args:
            again: try once more what was refused before; otherwise that gives None.
            mode: what to do with running requests; None is the server's `swap_mode`.

        Raises:
            UnlearnServeError: the entry was refused; the live release keeps serving.
        """
        task = asyncio.create_task(self._apply_newest(again=again, mode=mode))
        self._applying.add(task)  # the event loop itself holds only weak references to tasks
        task.add_done_callback(self._applying.discard)
        return await asyncio.shield(task)

    async def _apply_newest(self, *, again: bool, mode: SwapMode | None) -> SwapRecord | None:
        async with self._lock:
            if self.live.broken:
                raise SwapError(self.live.broken)
            refused = again and self.live.refused
            entry = await self._read_newest(self.live.generation if refused else self._seen_generation)
            if entry is None:
                if self._clock() >= self._keep_at:
                    await self._keep()
                return None
            return await self._apply(entry, mode or self.config.swap_mode)

    async def begin(self, entry: ChannelEntry | None, deletion_ids: tuple[str, ...], *, from_store: bool) -> None:
        """Name what the workers started on; called once, before the server is ready.

        Raises:
            NotEnforced: the state folder cannot be changed.
        """
        try:
            await asyncio.to_thread(self._last_applied.mark, entry)
        except OSError as error:
            raise NotEnforced(f"--state-dir: expected a folder that can be written, got {error}") from error
        self._name_live(entry, deletion_ids)
        self._kept = None if from_store else entry
        await self._keep()
        self._write(self._record("start", ok=True, entry=entry, deletion_ids=deletion_ids))

    async def _read_newest(self, after: int) -> ChannelEntry | None:
        try:
            entry = await self._store.call(lambda store: store.channel_after(self.config.channel, after))
        except Exception as error:  # an unexpected one too: whoever looks at the status must see it
            metrics.note_look(found=False)
            message = str(error) if isinstance(error, UnlearnServeError) else f"unexpected {error!r}"
            if self.live.store_error is None:
                self._write(self._record("store-unreachable", ok=False, error=message))
            self.live.store_error = message
            return None
        metrics.note_look(found=True)
        if self.live.store_error is not None:
            self.live.store_error = None
            self._write(self._record("store-reachable", ok=True))
        return entry

    async def _apply(self, entry: ChannelEntry, mode: SwapMode) -> SwapRecord:
        previous = self.live.entry.release if self.live.entry else None
        try:
            manifest = await self._store.call(
                lambda store: store.admit(entry, applied=self.live.entry, covered=self.live.deletion_ids)
            )
            self._keep_at = self._clock()  # due from here on, even if this is cancelled
            if entry.release == previous:
                await self._mark(entry)
                self._name_live(entry, manifest.deletion_ids)
                record = self._record("relabel", ok=True, entry=entry, deletion_ids=manifest.deletion_ids)
            else:
                times = await self.swapper.swap(
                    entry.release,
                    previous=previous,
                    when_live=lambda: self._name_live(entry, manifest.deletion_ids),
                    mode=mode,
                    when_staged=lambda: self._mark(entry),
                )
                record = self._swapped(entry, manifest.deletion_ids, previous, times)
                metrics.note_swap(record)
        except Exception as error:  # an unexpected one too: what is not noted as refused is not tried again
            self._refuse(entry, error, mode)
            if not self.live.broken:
                await self._keep()
            raise
        self._write(record)
        await self._keep()
        return record

    def _name_live(self, entry: ChannelEntry | None, deletion_ids: tuple[str, ...]) -> None:
        self.live.move_to(entry, deletion_ids)
        self._seen_generation = self.live.generation
        set_system_fingerprint(self._app_state, self.live.fingerprint)
        metrics.note_live(self.live)

    def _refuse(self, entry: ChannelEntry, error: Exception, mode: SwapMode) -> None:
        event: Event = "refusal"
        outcome: metrics.Outcome = "undone" if isinstance(error, SwapUndone) else "refused"
        if isinstance(error, SwapBroken):
            self.live.break_off(str(error))
            event = outcome = "broken"
        metrics.note_refusal(mode, outcome, error)
        self._seen_generation = entry.generation
        known, self.live.refused = self.live.refused, f"generation {entry.generation}: {type(error).__name__}: {error}"
        self._retry_at = self._clock() + _RETRY_SECONDS
        if self.live.refused != known:
            self._write(self._record(event, ok=False, entry=entry, mode=mode, error=self.live.refused))

    async def _mark(self, entry: ChannelEntry) -> None:
        """From here on, until `entry` is kept too, a start without the store is refused.

        Raises:
            SwapError: the state folder cannot be changed, so a start might bring back what `entry` replaces.
        """
        try:
            await asyncio.to_thread(self._last_applied.mark, entry)
        except OSError as error:
            raise SwapError(f"--state-dir: expected a folder that can be changed, got {error}") from error

    async def _keep(self) -> None:
        """Keep what is live beside the server; what fails is tried again later."""
        entry = self.live.entry
        self._keep_at = self._clock() + _RETRY_SECONDS
        try:
            if entry is not None and entry != self._kept:
                await self._store.call(lambda store: self._last_applied.remember(entry, store))
                self._kept = entry
            await asyncio.to_thread(self._last_applied.mark, entry)  # again: a swap may have been undone
        except Exception as error:
            # What is live is the right one; only a restart without the store would be refused. Serving on is safer.
            logger.warning("unlearn-serve: %s is live but could not be kept: %s", self.live.release, error)
        else:
            self._keep_at = math.inf

    def _swapped(
        self, entry: ChannelEntry, deletion_ids: tuple[str, ...], previous: str | None, times: SwapTimes
    ) -> SwapRecord:
        logger.info(
            "unlearn-serve: release %s (generation %d) is live, mode %s, stalled %.0f ms",
            entry.release,
            entry.generation,
            times.mode,
            times.stall_ms,
        )
        return self._record(
            "swap",
            ok=True,
            entry=entry,
            deletion_ids=deletion_ids,
            previous_release=previous,
            mode=times.mode,
            stage_ms=times.stage_ms,
            drain_ms=times.drain_ms,
            drained=times.drained,
            stall_ms=times.stall_ms,
            publish_to_live_ms=(times.live_at - entry.at.timestamp()) * 1e3,
        )

    def _record(self, event: Event, *, ok: bool, entry: ChannelEntry | None = None, **fields: Any) -> SwapRecord:
        if entry is not None:
            fields |= {
                "release": entry.release,
                "generation": entry.generation,
                "action": entry.action,
                "actor": entry.actor,
                "reason": entry.reason or None,
                "uncovers": entry.uncovers,
            }
        return SwapRecord(event=event, at=now(), channel=self.config.channel, ok=ok, **fields)

    def _write(self, record: SwapRecord) -> None:
        self.live.swaps.append(record)
        try:
            self.audit.append(record)
        except OSError as error:
            logger.error("unlearn-serve: audit log %s cannot be written: %s", self.audit.path, error)
