"""Follows a channel: sees its moves, has them swapped in, and keeps the books."""

import asyncio
import logging
import time
from typing import Any

from unlearn_serve.errors import SwapError, UnlearnServeError
from unlearn_serve.serving import metrics
from unlearn_serve.serving.config import ServingConfig, SwapMode
from unlearn_serve.serving.last_applied import LastApplied
from unlearn_serve.serving.ledger import count_under
from unlearn_serve.serving.live import Live
from unlearn_serve.serving.records import AuditLog, Event, SwapRecord, now
from unlearn_serve.serving.swap import SwapBroken, Swapper, SwapTimes
from unlearn_serve.serving.vllm_internals import set_system_fingerprint
from unlearn_serve.store import ChannelEntry, Store

logger = logging.getLogger("vllm.unlearn_serve")

_RETRY_REFUSED_SECONDS = 10.0
"""A store that fails for a moment, or a release that is repaired, must not need another promote."""


class Follower:
    """Polls the channel and applies its newest entry; one swap at a time."""

    def __init__(
        self, *, config: ServingConfig, swapper: Swapper, live: Live, app_state: Any, last_applied: LastApplied
    ) -> None:
        self.config = config
        self.swapper = swapper
        self.live = live
        self.audit = AuditLog(config.state_path / "audit.jsonl")
        self._app_state = app_state
        self._last_applied = last_applied
        self._lock = asyncio.Lock()
        self._seen_generation = live.generation
        self._retry_at = 0.0
        self._opened: Store | None = None

    async def run(self) -> None:
        """Poll until cancelled, or broken. No other failure ends it: no deletion would go live any more, unnoticed."""
        while not self.live.broken:
            try:
                await self.apply_newest(again=time.monotonic() >= self._retry_at)
            except UnlearnServeError as error:
                logger.error("unlearn-serve: %s", error)
            except Exception:
                logger.exception("unlearn-serve: unexpected failure; the follower goes on")
            await asyncio.sleep(self.config.poll_seconds)

    async def apply_newest(self, *, again: bool, mode: SwapMode | None = None) -> SwapRecord | None:
        """Swap to the channel's newest entry; None where it is live already or the store cannot be read.

        Args:
            again: try once more what was refused before; otherwise that gives None.
            mode: what to do with running requests; None is the server's `swap_mode`.

        Raises:
            UnlearnServeError: the entry was refused; the live release keeps serving.
        """
        async with self._lock:
            if self.live.broken:
                raise SwapError(self.live.broken)
            refused = again and self.live.refused
            entry = await self._read_newest(self.live.generation if refused else self._seen_generation)
            if entry is None:
                return None
            self._seen_generation = entry.generation
            return await self._apply(entry, mode or self.config.swap_mode)

    async def begin(self, entry: ChannelEntry | None, deletion_ids: tuple[str, ...], *, from_store: bool) -> None:
        """Name what the workers started on; called once, before the server is ready."""
        self._seen_generation = entry.generation if entry else 0
        self._name_live(entry, deletion_ids)
        if entry is not None and from_store:
            await self._remember(entry)
        self._write(self._record("start", ok=True, entry=entry, deletion_ids=deletion_ids))

    async def _read_newest(self, after: int) -> ChannelEntry | None:
        try:
            entry = await asyncio.to_thread(lambda: self._store().channel_after(self.config.channel, after))
        except UnlearnServeError as error:
            self._opened = None  # whatever is wrong with the connection, the next look makes a new one
            metrics.STORE_REACHABLE.set(0)
            if self.live.store_error is None:
                self._write(self._record("store-unreachable", ok=False, error=str(error)))
            self.live.store_error = str(error)
            return None
        metrics.STORE_REACHABLE.set(1)
        metrics.LAST_POLL.set_to_current_time()
        if self.live.store_error is not None:
            self.live.store_error = None
            self._write(self._record("store-reachable", ok=True))
        return entry

    def _store(self) -> Store:
        if self._opened is None:
            self._opened = self.config.open_store()
        return self._opened

    async def _apply(self, entry: ChannelEntry, mode: SwapMode) -> SwapRecord:
        previous = self.live.entry.release if self.live.entry else None
        try:
            manifest = await asyncio.to_thread(
                lambda: self._store().admit(entry, after=self.live.generation, covered=self.live.deletion_ids)
            )
            if entry.release == previous:
                self._name_live(entry, manifest.deletion_ids)
                record = self._record("relabel", ok=True, entry=entry, deletion_ids=manifest.deletion_ids)
            else:
                times = await self.swapper.swap(
                    entry.release,
                    previous=previous,
                    when_live=lambda: self._name_live(entry, manifest.deletion_ids),
                    mode=mode,
                )
                record = self._swapped(entry, manifest.deletion_ids, previous, times)
                metrics.count_swap(record)
        except Exception as error:  # an unexpected one too: what is not noted as refused is not tried again
            self._refuse(entry, error, mode)
            raise
        self._write(record)
        await self._remember(entry)
        return record

    def _name_live(self, entry: ChannelEntry | None, deletion_ids: tuple[str, ...]) -> None:
        self.live.move_to(entry, deletion_ids)
        set_system_fingerprint(self._app_state, self.live.fingerprint)
        count_under(self.live)
        metrics.name_live(self.live)

    def _refuse(self, entry: ChannelEntry, error: Exception, mode: SwapMode) -> None:
        event: Event = "refusal"
        metrics.SWAPS.labels(mode, "broken" if isinstance(error, SwapBroken) else "refused").inc()
        if isinstance(error, SwapBroken):
            self.live.broken = str(error)
            event = "broken"
        known, self.live.refused = self.live.refused, f"generation {entry.generation}: {type(error).__name__}: {error}"
        self._retry_at = time.monotonic() + _RETRY_REFUSED_SECONDS
        if self.live.refused != known:
            metrics.REFUSALS.labels("channel").inc()
            self._write(self._record(event, ok=False, entry=entry, error=self.live.refused))

    async def _remember(self, entry: ChannelEntry) -> None:
        try:
            await asyncio.to_thread(lambda: self._last_applied.remember(entry, self._store()))
        except (UnlearnServeError, OSError) as error:
            # The release is live; only a restart without the store would miss it. Serving on is the safer way.
            logger.warning("unlearn-serve: release %s is live but could not be kept: %s", entry.release, error)

    def _swapped(
        self, entry: ChannelEntry, deletion_ids: tuple[str, ...], previous: str | None, times: SwapTimes
    ) -> SwapRecord:
        logger.info(
            "unlearn-serve: release %s (generation %d) is live, stalled %.0f ms",
            entry.release,
            entry.generation,
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
