"""Servers in this process: our routes, follower, swapper and workers are the real ones, over HTTP on a free port.

What is left out is vLLM's engine and the model: nothing is generated, so a pause has nothing to pause.
"""

import asyncio
import copy
import os
import shutil
import threading
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import uvicorn
from fastapi import FastAPI
from torch import nn

from support.server import GENEROUS_SECONDS


class EngineWithoutModel:
    """What the swapper calls of an engine; remote calls reach real workers with real sites."""

    def __init__(self, vllm_config: Any, *, max_rank: int, workers: int = 2) -> None:
        self.vllm_config = vllm_config
        self.workers = [_worker(vllm_config, rank, max_rank) for rank in range(workers)]

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        return [getattr(worker, method)(*args) for worker in self.workers]

    async def pause_generation(self, **_: Any) -> None: ...

    async def resume_generation(self) -> None: ...

    async def reset_prefix_cache(self, **_: Any) -> bool:
        return True


def _worker(vllm_config: Any, rank: int, max_rank: int) -> Any:
    from unlearn_serve.serving.models import register_models

    register_models()
    from unlearn_serve.format.fingerprint import fingerprint_base_model
    from unlearn_serve.serving import vllm_internals
    from unlearn_serve.serving.models import ATTRIBUTE
    from unlearn_serve.serving.slots import build_sites
    from unlearn_serve.serving.worker import UnlearningWorker

    d, blocks = vllm_internals.hidden_size(vllm_config), vllm_internals.num_blocks(vllm_config)
    layers = build_sites(
        list(range(blocks)), num_blocks=blocks, hidden_size=d, max_rank=max_rank, max_tokens=8, dtype=torch.bfloat16
    )
    layers.base_model = fingerprint_base_model(vllm_internals.base_model_dir(vllm_config))
    model = nn.Module()
    object.__setattr__(model, ATTRIBUTE, layers)

    class Worker(UnlearningWorker):
        def get_model(self) -> nn.Module:
            return model

    worker: Any = Worker()
    worker.rank, worker.vllm_config = rank, vllm_config
    return worker


@contextmanager
def serving(vllm_config: Any, store: Path, state: Path, *, max_rank: int = 16, **settings: Any) -> Iterator[str]:
    """Serve under channel `production` of `store`, from the plain model where it names nothing; yields the URL."""
    unlearn = {"store": str(store), "state_dir": str(state), "poll_seconds": 0.02, "allow_plain": True, **settings}
    config = copy.copy(vllm_config)
    config.additional_config = {"unlearn": unlearn}

    @asynccontextmanager
    async def follow(app: FastAPI) -> AsyncIterator[None]:
        from unlearn_serve.serving.startup import start_following

        await start_following(EngineWithoutModel(config, max_rank=max_rank), app.state, Namespace())  # type: ignore[arg-type]
        yield
        app.state.unlearning_task.cancel()

    from unlearn_serve.serving.admin_key import AdminKeys
    from unlearn_serve.serving.attach import attach_to_admin
    from unlearn_serve.serving.config import ServingConfig

    app = FastAPI(lifespan=follow)
    settings_read = ServingConfig.from_additional_config(config.additional_config)
    assert settings_read is not None
    attach_to_admin(app, settings_read, AdminKeys(os.environ))
    with http(app, lifespan="on") as url:
        yield url


@contextmanager
def http(app: Any, *, lifespan: Literal["on", "off"] = "off") -> Iterator[str]:
    """Serve an ASGI app on a free port, in a thread of its own; yields the URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan=lifespan))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name="server", daemon=True)
    thread.start()
    try:
        wait_started(server, thread)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True  # a request that hangs is not waited for
        thread.join(GENEROUS_SECONDS)


def wait_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    while not server.started:
        assert thread.is_alive(), "the server did not start; its traceback is above"
        thread.join(0.01)


def answering(status: int, body: str, **headers: str) -> Any:
    """An ASGI app that gives every request the same answer."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    return Starlette(routes=[Route("/{path:path}", lambda _: Response(body, status, headers=headers))])


def damage(store: Path, release: str) -> None:
    """Change one bit of the release's weights; publishing the same adapter again repairs it."""
    weights = store / "releases" / release / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


def mount(store: Path, at: Path) -> Path:
    """Put a copy of the store's folder at `at`, all at once: what a server sees that has a mount of its own."""
    whole = shutil.copytree(store, at.with_name(f"{at.name}.partial"))
    return whole.rename(at)
