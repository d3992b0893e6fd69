"""From a built engine to a server that may become ready: every worker enforces the same, expected release."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from unlearn_serve.errors import NotEnforced, UnlearnServeError
from unlearn_serve.format.fingerprint import fingerprint_base_model
from unlearn_serve.serving import vllm_internals, vllm_lora
from unlearn_serve.serving.admin_listener import start_listener
from unlearn_serve.serving.app_state import ROUTES, STATE
from unlearn_serve.serving.board import Board
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.follower import Follower
from unlearn_serve.serving.last_applied import LastApplied
from unlearn_serve.serving.live import Live
from unlearn_serve.serving.observer import Observer
from unlearn_serve.serving.routes import Routes
from unlearn_serve.serving.starting_point import StartingPoint, find_starting_point
from unlearn_serve.serving.swap import Swapper
from unlearn_serve.serving.workers import names_of
from unlearn_serve.sites import SITE_NAME

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

logger = logging.getLogger("vllm.unlearn_serve")

_NOBODY_FOLLOWS = "the API server that follows the channel has ended; restart the server"


async def start_following(engine: "EngineClient | None", state: Any, args: Any) -> None:
    """Verify enforcement on every worker, name what is live, and start to follow the channel. Mutates `state`.

    Of several API servers the first does so; the others wait for it, and name what it makes live.

    Raises:
        NotEnforced: the server must not become ready; also logged as one line.
    """
    try:
        config, engine = _checked_settings(engine)
        index, servers = vllm_internals.api_server_index(engine.vllm_config)
        if index > 0:
            await _observe(config, engine, state)
            return
        board = await asyncio.to_thread(_board, config) if servers > 1 else None
        follower = await _verified_follower(config, engine, state)
        routes = await _routes(follower, engine, state)
        # This loop answers its first call, so not before the lines below have run.
        state.unlearning_admin_task = start_listener(follower.config, state, args)
    except UnlearnServeError as error:
        logger.error("unlearn-serve: refusing to serve: %s", error)
        raise
    setattr(state, STATE, follower)
    setattr(state, ROUTES, routes)
    # Kept on the state: the event loop itself holds only weak references to tasks.
    state.unlearning_task = asyncio.create_task(follower.run(), name="unlearn-follower")
    if board is not None:
        # Not before nothing can end this start any more: the others are ready as soon as there is something to read.
        follower.live.show_on(board)
        # vLLM lets the others serve on where one ends without an error, as by SIGTERM.
        state.unlearning_task.add_done_callback(lambda _: follower.live.break_off(_NOBODY_FOLLOWS))


async def _observe(config: ServingConfig, engine: "EngineClient", state: Any) -> None:
    observer = await Observer.join(config, state)
    vllm_internals.call_before_outputs(engine, observer.look)
    setattr(state, STATE, observer)
    setattr(state, ROUTES, None)


def _board(config: ServingConfig) -> Board:
    try:
        return Board.create(config.board_path)
    except OSError as error:
        raise NotEnforced(f"--state-dir: expected a folder that can be written, got {error}") from error


async def _routes(follower: Follower, engine: "EngineClient", state: Any) -> Routes | None:
    if not follower.config.routes:
        return None
    for worker in await follower.swapper.workers():
        if worker["route_sites"] != worker["sites"]:
            raise NotEnforced(
                f"routes: expected vLLM's LoRA manager to fill the sites of blocks {worker['sites']} of worker "
                f"{worker['rank']}, got {worker['route_sites']}"
            )
        if worker["unverified"]:
            raise NotEnforced(
                "--lora-modules: expected ordinary LoRA adapters, got unlearning layers in the one numbered "
                f"{worker['unverified'][0]}; publish it and name the release in a request's model"
            )
    if vllm_lora.mixes_up_adapters(engine.vllm_config, SITE_NAME):
        logger.warning(
            "unlearn-serve: on CPU, vLLM applies the LoRA in its last slot to the linear layers of requests without an "
            "adapter in the same batch (vllm-project/vllm#48421); the sites are not concerned"
        )
    routes = Routes(config=follower.config, engine=engine, live=follower.live, app_state=state)
    from unlearn_serve.serving.ledger import TokenLedger

    TokenLedger.routes = routes.tokens
    return routes


def _checked_settings(engine: "EngineClient | None") -> "tuple[ServingConfig, EngineClient]":
    if engine is None:
        raise NotEnforced("this server has no engine: expected `vllm serve`, not a render server")
    vllm_config = engine.vllm_config
    config = ServingConfig.from_additional_config(vllm_config.additional_config)
    if config is None:
        raise NotEnforced("--additional-config has no settings of unlearn-serve; start with `unlearn-serve serve`")
    for line in vllm_internals.unsupported_settings(vllm_config):
        raise NotEnforced(f"not supported together with unlearning releases: {line}")
    config.require_servers(vllm_internals.api_server_index(vllm_config)[1])
    return config, engine


async def _verified_follower(config: ServingConfig, engine: "EngineClient", state: Any) -> Follower:
    swapper = Swapper(
        engine,
        stage_timeout_seconds=config.stage_timeout_seconds,
        drain_timeout_seconds=config.drain_timeout_seconds,
    )
    live = Live(channel=config.channel)
    try:
        follower = Follower(
            config=config,
            swapper=swapper,
            live=live,
            app_state=state,
            last_applied=LastApplied(config.state_path, config.trusted_keys),
        )
    except OSError as error:
        raise NotEnforced(f"--state-dir: expected a folder that can be written, got {error}") from error
    base_model = await asyncio.to_thread(fingerprint_base_model, vllm_internals.base_model_dir(engine.vllm_config))
    start = await asyncio.to_thread(find_starting_point, config, base_model)
    await _bring_workers_to(start, swapper)
    if start is None:
        await follower.begin(None, (), from_store=False)
    else:
        await follower.begin(start.entry, start.release.manifest.deletion_ids, from_store=start.from_store)
    return follower


async def _bring_workers_to(start: StartingPoint | None, swapper: Swapper) -> None:
    """Have every worker on the starting release: the channel may have moved while the engines were being built.

    Nothing is served yet, so workers that started on different releases are brought to the same one as well.
    """
    workers = await swapper.workers()
    without_sites = [worker for worker in workers if not worker["sites"]]
    if without_sites:
        raise NotEnforced(f"{names_of(without_sites, workers)}: expected sites, got none")
    expected = start.release.digest if start else None
    live = {worker["release"] for worker in workers}
    if live == {expected}:
        return
    if expected is None:
        raise NotEnforced(f"expected every worker on the plain model, got {sorted(map(str, live))}")
    # What is live is different from worker to worker, so what fails is not undone: it ends the start.
    await swapper.swap(expected, previous=min(live, key=str), when_live=lambda: None)
