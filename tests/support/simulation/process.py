"""One life of a simulated server, and the ways in which the product reaches the world."""

import asyncio
import logging
import os
import resource
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from stat import S_ISREG
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from starlette.datastructures import State
from store.faults import Killed

from support.simulation.engine import SimulatedEngine, vllm_config_of
from support.simulation.faults import EngineFault, Faults, Kind, ServersBackend
from support.simulation.virtual_time import VirtualLoop
from support.simulation.world import World
from unlearn_serve.errors import UnlearnServeError
from unlearn_serve.serving import records, startup, swap
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.follower import Follower
from unlearn_serve.store import Store, audit, moves


class Process:
    """API server, engine core and workers, from their start to their end."""

    def __init__(self, world: World) -> None:
        self.faults = Faults(world.planned, lambda: world.store_away)
        self.engine: SimulatedEngine | None = None
        self.refused: str | None = None
        """Why it did not become ready."""
        self.running = False
        """Whether what happens now is done by this process, and not by the test around it."""
        self.loop = VirtualLoop()
        self._world = world
        self._app_state = State()

    @property
    def ready(self) -> bool:
        """Whether requests were let in."""
        return self.engine is not None and self.engine.ready

    @property
    def follower(self) -> Follower:
        """The product's, once it is ready."""
        follower: Follower = getattr(self._app_state, startup.STATE)
        return follower

    def start(self) -> None:
        """Build the engine and become ready, or end."""
        world = self._world
        world.process = self
        world.kv_of.clear()
        try:
            with self._acting():
                self.engine = SimulatedEngine(
                    vllm_config_of(world.truth.model, world.settings),
                    world.truth.base,
                    self.faults,
                    computed=world.token,
                    forgot=world.kv_of.clear,
                )
            args = SimpleNamespace(api_server_count=1)
            self.run(startup.start_following(self.engine, self._app_state, args))  # type: ignore[arg-type]
        except (UnlearnServeError, EngineFault, Killed) as error:
            self.refused = f"{type(error).__name__}: {error}"
            self.end()
            return
        if not self.ended_if_killed():
            self.engine.ready = True

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run the event loop, and with it the follower, until `work` is done or the process dies."""
        try:
            with self._acting():
                return self.loop.run_until_complete(work)
        except Killed:
            return None

    def ended_if_killed(self) -> bool:
        """Bury it if it was killed; whether it was."""
        if self.faults.dead:
            self.end()
        return self.faults.dead

    def let_go(self) -> None:
        """Let reads of the store that hang go on."""
        self.faults.let_go()
        with self._acting():
            for worker in self.engine.workers if self.engine else ():
                self.engine.until_staged(worker)  # type: ignore[union-attr]

    def end(self) -> None:
        """Kill it."""
        if self.ready:
            self._world.seen.update(record.event for record in self.follower.live.swaps)
        self._world.planned.clear()
        self.faults.kill()
        self.let_go()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()

        async def all_of_them() -> None:
            await asyncio.gather(*tasks, return_exceptions=True)

        with self._acting():
            self.loop.run_until_complete(all_of_them())
        self.loop.close()
        self._world.process = None

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """What this process does, and on what disk: on a full one files are made, renamed, removed, but not written."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self._world.disk_full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        self.running = True
        try:
            yield
        finally:
            self.running = False
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def simulated(world: World) -> Iterator[None]:
    """Let the product's way to its store, its disk's syncs and renames, and its clocks lead through `world`."""

    def step(kind: Kind) -> None:
        if world.process is not None and world.process.running:
            world.process.faults.step(kind)

    def open_store(config: ServingConfig) -> Store:
        assert world.process is not None
        faults = world.process.faults
        faults.step("store")
        return Store(ServersBackend(world.objects, faults, name=config.store), trusted_keys=config.trusted_keys)

    def fsync(handle: int) -> None:
        if S_ISREG(os.fstat(handle).st_mode):  # that of a folder comes with a file's, or with a rename
            step("disk")

    def replace(source: Any, target: Any) -> None:
        step("disk")
        renamed(source, target)
        step("disk")

    def wall_clock() -> float:
        return 1.8e9 + world.seconds_off

    class WallClock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromtimestamp(wall_clock(), tz)

    def monotonic() -> float:
        return world.process.loop.now if world.process else 0.0

    renamed = os.replace
    with ExitStack() as stack:
        for target, name, replacement in (
            (ServingConfig, "open_store", open_store),
            (os, "fsync", fsync),
            (os, "replace", replace),
            (swap, "time", SimpleNamespace(time=wall_clock, monotonic=monotonic, perf_counter=monotonic)),
            (startup, "Follower", partial(Follower, clock=monotonic)),
            (moves, "datetime", WallClock),
            (records, "datetime", WallClock),
            (audit, "datetime", WallClock),
        ):
            stack.enter_context(patch.object(target, name, replacement))
        disabled, logging.root.manager.disable = logging.root.manager.disable, logging.CRITICAL
        try:
            yield
        finally:
            logging.root.manager.disable = disabled
