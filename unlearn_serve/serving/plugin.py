"""What vLLM's plugin loader imports: entry points that cannot fail to import.

vLLM logs and swallows an exception raised while a plugin is imported or its factory called, and then serves the
plain model. So this module imports nothing of weight, and everything that can fail does so inside `register`,
`attach_router` and `init_state`, whose exceptions vLLM lets through.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import Namespace

    from fastapi import FastAPI

NAME = "unlearn_serve"
"""The name of the entry points, to be listed in the environment variable VLLM_PLUGINS."""


def register() -> None:
    """Entry point `vllm.general_plugins`: let every model class end its feed-forward networks in sites."""
    from unlearn_serve.serving.models import register_models

    register_models()


class UnlearningEndpoints:
    """Entry point `vllm.endpoint_plugins`: the routes under /v1/unlearning, and the follower behind them."""

    name = NAME
    required_tasks = ("generate",)

    def attach_router(self, app: "FastAPI") -> None:
        """Add the routes, and the middlewares that guard and limit requests and name the release on every response."""
        from unlearn_serve.serving.attach import attach_to_public

        attach_to_public(app)

    async def init_state(self, engine_client: Any, state: Any, args: "Namespace") -> None:
        """Verify that the release is enforced on every worker, then follow the channel; raises if it is not."""
        from unlearn_serve.serving.startup import start_following

        await start_following(engine_client, state, args)


def endpoint_plugin() -> UnlearningEndpoints:
    """Return the endpoint plugin; must not fail."""
    return UnlearningEndpoints()
