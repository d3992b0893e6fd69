"""The admin routes at an address of their own, served by the event loop that serves the public port."""

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving.admin_key import AdminKeys
from unlearn_serve.serving.attach import attach_to_admin
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.listen_address import ListenAddress
from unlearn_serve.serving.vllm_internals import answer_errors_as_vllm, inference_keys

if TYPE_CHECKING:
    from argparse import Namespace

logger = logging.getLogger("vllm.unlearn_serve")


class _Server(uvicorn.Server):
    """Leaves signals to vLLM's own server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def start_listener(config: ServingConfig, state: Any, args: "Namespace") -> "asyncio.Task[None] | None":
    """Serve the admin routes at `config.admin_listen`; returns the task that does, None where they have no address.

    Args:
        config: the settings.
        state: the public app's, with the follower; both apps share it.
        args: vLLM's arguments; a port speaks TLS where the public one does, a Unix socket never.

    Raises:
        NotEnforced: no keys, the public port, or an address on which it cannot listen.
    """
    if config.admin_listen is None:
        return None
    keys = AdminKeys(os.environ, inference_keys=inference_keys(args))
    keys.require(f"admin_listen {config.admin_listen}")
    address = ListenAddress.parse(config.admin_listen)
    if address.port and address.port == args.port and not args.uds:
        raise NotEnforced(f"admin_listen {address}: expected another port than the public one; --port is {args.port}")
    app = FastAPI(title="unlearn-serve admin", openapi_url=None if args.disable_fastapi_docs else "/openapi.json")
    app.state = state
    attach_to_admin(app, config, keys)
    answer_errors_as_vllm(app)
    tls = {} if address.path else {name: getattr(args, name) for name in _TLS}
    try:
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,  # vLLM's stays
                lifespan="off",
                access_log=not args.disable_uvicorn_access_log,
                h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
                **tls,
            )
        )
        server.config.load()
    except (OSError, ssl.SSLError) as error:
        raise NotEnforced(f"admin_listen {address}: expected the TLS files of the public port, got {error}") from error
    bound = address.bind()
    logger.info("unlearn-serve: admin routes are at %s and not on the public port", address)
    task = asyncio.create_task(server.serve(sockets=[bound]), name="unlearn-admin")
    task.add_done_callback(_tell)
    return task


_TLS = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers")


def _tell(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("unlearn-serve: the admin routes are gone, restart to have them back: %s", error)
