"""What this plugin adds to an app: routes, and the middlewares in their order."""

import logging
import os
from typing import TYPE_CHECKING

from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving import endpoints, route_endpoints
from unlearn_serve.serving.admin_door import AdminDoor
from unlearn_serve.serving.admin_key import AdminKeys
from unlearn_serve.serving.body_limit import BodyLimit
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.guard import Guard
from unlearn_serve.serving.middleware import NameRelease
from unlearn_serve.serving.route_middleware import ServeRoutes
from unlearn_serve.serving.vllm_internals import inference_keys

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger("vllm.unlearn_serve")


def attach_to_public(app: "FastAPI") -> None:
    """Add to vLLM's app, on its public port. Mutates `app`.

    Raises:
        NotEnforced: the settings or the admin keys are not valid; also logged as one line.
    """
    try:
        config = ServingConfig.from_additional_config(app.state.args.additional_config) or _no_settings()
        keys = AdminKeys(os.environ, inference_keys=inference_keys(app.state.args))
    except NotEnforced as error:
        logger.error("unlearn-serve: refusing to serve: %s", error)
        raise
    app.add_middleware(ServeRoutes)  # the innermost: each one that follows is around those before
    if config.admin_listen:
        _guard(app, config, None)
    else:
        attach_to_admin(app, config, keys)


def attach_to_admin(app: "FastAPI", config: ServingConfig, keys: AdminKeys) -> None:
    """Add to an app that has the admin routes. Mutates `app`."""
    app.include_router(endpoints.router)
    app.include_router(route_endpoints.router)
    _guard(app, config, AdminDoor(keys, rate=config.admin_rate, failure_rate=config.admin_failure_rate))


def _guard(app: "FastAPI", config: ServingConfig, door: AdminDoor | None) -> None:
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    app.add_middleware(Guard, door=door)
    app.add_middleware(NameRelease)


def _no_settings() -> ServingConfig:
    raise NotEnforced("--additional-config has no settings of unlearn-serve; start with `unlearn-serve serve`")
