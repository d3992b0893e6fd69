"""The routes of one server: releases that requests name, brought to the workers before the engine sees the request."""

import asyncio
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unlearn_serve.errors import (
    NotCovered,
    NotEnforced,
    ReleaseNotFound,
    RouteRefused,
    StoreUnavailable,
    UnlearnServeError,
)
from unlearn_serve.serving import metrics, vllm_lora
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.live import PLAIN, Live
from unlearn_serve.serving.route_names import RouteNames
from unlearn_serve.serving.route_tokens import RouteTokens
from unlearn_serve.serving.workers import Workers

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

_POLL_STAGING_SECONDS = 0.005
_LOOK_FOR_ROOM_SECONDS = 0.1


@dataclass(kw_only=True)
class HeldRoute:
    """A release that every worker holds as an adapter."""

    release: str
    name: str
    """Its canonical name, the adapter's in vLLM."""
    lora_id: int
    deletion_ids: frozenset[str]
    requests: int = 0
    """HTTP requests under it that have not been answered in full."""
    last_used: float = field(default_factory=time.monotonic)


class Routes:
    """Which releases the workers hold, and who uses them. Lives on the event loop of the API server."""

    def __init__(self, *, config: ServingConfig, engine: "EngineClient", live: Live, app_state: Any) -> None:
        """Make room for as many releases as the workers' memory takes beside the ordinary adapters.

        Raises:
            NotEnforced: an alias is not valid, or there is no room.
        """
        self.config = config
        self.names = RouteNames(vllm_lora.base_names(app_state), config.route_aliases)
        self._engine = engine
        self._workers = Workers(engine)
        self._live = live
        self._app_state = app_state
        ordinary = vllm_lora.named_adapters(app_state)
        if taken := sorted(ordinary.keys() & config.route_aliases.keys()):
            raise NotEnforced(f"--route-alias: {taken[0]!r} is the name of an ordinary LoRA adapter already")
        cached = vllm_lora.cached_loras(engine.vllm_config)
        # One place stays free: vLLM must be able to load what a late request names after its route was dropped.
        self.capacity = cached - len(ordinary) - 1
        if self.capacity < 1:
            raise NotEnforced(f"--max-cpu-loras: expected at least {len(ordinary) + 2}, got {cached}")
        self._paths = config.state_path / "routes"
        shutil.rmtree(self._paths, ignore_errors=True)  # of an earlier run
        self._held: dict[str, HeldRoute] = {}
        self.tokens = RouteTokens(engine, self.served)
        self._moving = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def held(self) -> list[HeldRoute]:
        """The routes in the workers' memory, least recently used first."""
        return sorted(self._held.values(), key=lambda route: route.last_used)

    def missing_ids(self, deletion_ids: frozenset[str]) -> list[str]:
        """Return the deletion ids of the default that are not among `deletion_ids` and must be; empty where served."""
        if self.config.allow_uncovered_routes:
            return []
        return sorted(set(self._live.deletion_ids) - deletion_ids)

    def served(self, name: str) -> str | None:
        """Return the release that requests under adapter `name` are computed under now; None is the default's.

        Ordinary adapters and routes that do not cover the default (any more) are computed under the default.
        """
        route = self._held.get(name.rpartition("@")[2])
        served = route is not None and route.name == name and not self.missing_ids(route.deletion_ids)
        return route.release if route is not None and served else None

    async def acquire(self, label: str) -> HeldRoute:
        """Return the route that `label` means, held by every worker and counted as in use until `release`.

        Reading it does not stop the engine. Where memory is full of routes in use, this waits until one is free.

        Raises:
            ReleaseNotFound: no such release.
            NotCovered: it does not cover the deletion ids of the default.
            RouteRefused: a worker could not take it: corrupt, for another base model, of too large a rank.
            StoreError: the store cannot be read, or the label is ambiguous.
        """
        digest, deletion_ids = await asyncio.to_thread(self._look_up, label)
        self._require_covered(digest, deletion_ids)
        route = self._held.get(digest)
        if route is None:
            async with self._moving:
                route = self._held.get(digest) or await self._bring(digest, deletion_ids)
        self._require_covered(digest, deletion_ids)  # once more: the default may have moved in the meantime
        route.requests += 1
        route.last_used = time.monotonic()
        return route

    def release(self, route: HeldRoute) -> None:
        """Count one request under `route` less."""
        route.requests -= 1
        self._freed.set()

    async def evict(self, digest: str) -> None:
        """Take a route out of every worker; the next request that names it brings it back.

        Raises:
            ReleaseNotFound: it is not held.
            RouteRefused: requests under it are under way.
        """
        async with self._moving:
            route = self._held.get(digest)
            if route is None:
                raise ReleaseNotFound(f"route {digest}: expected one that this server holds; GET lists them")
            if not self._idle(route):
                raise RouteRefused(f"route {digest}: requests under it have not finished; try again when they have")
            await self._drop(route)

    def _look_up(self, label: str) -> tuple[str, frozenset[str]]:
        if label == PLAIN:
            if not self.config.allow_plain:
                raise NotCovered("the plain model is not served by this server; it would be with --allow-plain")
            return PLAIN, frozenset()
        known = self.names.known(label)
        if known is not None and (route := self._held.get(known)):
            return known, route.deletion_ids  # served on while the store is away
        store = self.config.open_store()
        digest = self.names.digest(label, store)
        return digest, frozenset(store.load_manifest(digest).deletion_ids)

    def _require_covered(self, digest: str, deletion_ids: frozenset[str]) -> None:
        if missing := self.missing_ids(deletion_ids):
            raise NotCovered(
                f"release {digest}: expected one that covers every deletion id of the default release, got one without "
                f"{', '.join(missing)}; name one that does (fuse them)"
            )

    async def _bring(self, digest: str, deletion_ids: frozenset[str]) -> HeldRoute:
        await self._make_room()
        lora_id = vllm_lora.next_lora_id(self._app_state)
        # A path of its own for each time: should a worker ever lose it, no KV of that time is taken for this one's.
        path = str(self._paths / f"{digest}-{lora_id}")
        name = self.names.canonical(digest)
        try:
            await self._workers.call("unlearn_stage_route", digest, lora_id, path)
            await self._wait_staged(digest, lora_id)
            await self._workers.call("unlearn_adopt_route", lora_id)
        except BaseException:
            await self._workers.call("unlearn_drop_route", lora_id)
            raise
        route = HeldRoute(release=digest, name=name, lora_id=lora_id, deletion_ids=deletion_ids)
        self._held[digest] = route
        metrics.ROUTES_HELD.set(len(self._held))
        vllm_lora.name_adapter(self._app_state, name, lora_id, path)
        return route

    async def _wait_staged(self, digest: str, lora_id: int) -> None:
        deadline = time.monotonic() + self.config.stage_timeout_seconds
        while True:
            states = await self._workers.call("unlearn_route_staging", lora_id)
            for rank, (state, error) in enumerate(states):
                if state == "failed":
                    raise RouteRefused(f"worker {rank} could not take release {digest}: {error}")
            if all(state == "ready" for state, _ in states):
                return
            if time.monotonic() > deadline:
                raise RouteRefused(
                    f"release {digest} was not staged within {self.config.stage_timeout_seconds:g} s; try again"
                )
            await asyncio.sleep(_POLL_STAGING_SECONDS)

    async def _make_room(self) -> None:
        """Drop idle routes, least recently used first, until one more fits; wait where none is idle."""
        while len(self._held) >= self.capacity:
            self._freed.clear()
            idle = [route for route in self.held if self._idle(route)]
            if idle:
                await self._drop(idle[0])
                continue
            try:
                await asyncio.wait_for(self._freed.wait(), _LOOK_FOR_ROOM_SECONDS)
            except TimeoutError:
                continue  # requests that outlive their HTTP answer end without telling

    def _idle(self, route: HeldRoute) -> bool:
        return route.requests == 0 and not vllm_lora.in_engine(self._engine, route.name)

    async def _drop(self, route: HeldRoute) -> None:
        # First the name, so that no request finds it from here on.
        del self._held[route.release]
        metrics.ROUTES_HELD.set(len(self._held))
        metrics.ROUTE_EVICTIONS.inc()
        vllm_lora.forget_adapter(self._app_state, route.name)
        await self._workers.call("unlearn_drop_route", route.lora_id)


def status_of(error: UnlearnServeError) -> int:
    """Return the HTTP status for what `Routes` raises."""
    for kind, status in ((ReleaseNotFound, 404), (NotCovered, 403), (StoreUnavailable, 503)):
        if isinstance(error, kind):
            return status
    return 409
