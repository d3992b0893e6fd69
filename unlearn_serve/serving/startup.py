"""From a built engine to a server that may become ready: every worker enforces the same, expected release."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from unlearn_serve.errors import NotEnforced, UnlearnServeError
from unlearn_serve.format.fingerprint import fingerprint_base_model
from unlearn_serve.layers.ffn import SITE_NAME
from unlearn_serve.serving import vllm_internals, vllm_lora
from unlearn_serve.serving.admin_listener import start_listener
from unlearn_serve.serving.app_state import ROUTES, STATE
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.follower import Follower
from unlearn_serve.serving.last_applied import LastApplied
from unlearn_serve.serving.live import Live
from unlearn_serve.serving.routes import Routes
from unlearn_serve.serving.starting_point import StartingPoint, find_starting_point
from unlearn_serve.serving.swap import Swapper

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

logger = logging.getLogger("vllm.unlearn_serve")


async def start_following(engine: "EngineClient | None", state: Any, args: Any) -> None:
    """Verify enforcement on every worker, name what is live, and start to follow the channel. Mutates `state`.

    Raises:
        NotEnforced: the server must not become ready; also logged as one line.
    """
    try:
        follower = await _verified_follower(engine, state, args)
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


async def _routes(follower: Follower, engine: "EngineClient | None", state: Any) -> Routes | None:
    if not follower.config.routes:
        return None
    assert engine is not None, "there is a follower"
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


async def _verified_follower(engine: "EngineClient | None", state: Any, args: Any) -> Follower:
    if engine is None:
        raise NotEnforced("this server has no engine: expected `vllm serve`, not a render server")
    vllm_config = engine.vllm_config
    config = ServingConfig.from_additional_config(vllm_config.additional_config)
    if config is None:
        raise NotEnforced("--additional-config has no settings of unlearn-serve; start with `unlearn-serve serve`")
    for line in vllm_internals.unsupported_settings(vllm_config, args):
        raise NotEnforced(f"not supported together with unlearning releases: {line}")
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
    base_model = await asyncio.to_thread(fingerprint_base_model, vllm_internals.base_model_dir(vllm_config))
    start = await asyncio.to_thread(find_starting_point, config, base_model)
    await _bring_workers_to(start, swapper)
    if start is None:
        await follower.begin(None, (), from_store=False)
    else:
        await follower.begin(start.entry, start.release.manifest.deletion_ids, from_store=start.from_store)
    return follower


async def _bring_workers_to(start: StartingPoint | None, swapper: Swapper) -> None:
    """Have every worker on the starting release: the channel may have moved while the engine was being built."""
    workers = await swapper.workers()
    without_sites = [worker["rank"] for worker in workers if not worker["sites"]]
    if without_sites:
        raise NotEnforced(f"workers {without_sites} have no sites")
    expected = start.release.digest if start else None
    live = {worker["release"] for worker in workers}
    if live == {expected}:
        return
    if expected is None or len(live) > 1:
        raise NotEnforced(f"expected every worker on {expected or 'the plain model'}, got {sorted(map(str, live))}")
    await swapper.swap(expected, previous=live.pop(), when_live=lambda: None)
