"""Names the release on every response, counts them by it, and lets nothing through once enforcement is broken."""

from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders

from unlearn_serve.serving import metrics
from unlearn_serve.serving.error_answer import error_answer
from unlearn_serve.serving.route_middleware import SERVED_RELEASE

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

RELEASE_HEADER = "x-unlearn-release"
GENERATION_HEADER = "x-unlearn-generation"
_ANSWER_WHEN_BROKEN = ("/v1/unlearning", "/metrics")
"""Neither computes a token, and whoever watches must learn of it."""


class NameRelease:
    """ASGI middleware. The headers name the release that is live when the response begins.

    A streamed response that spans a swap ends under a later release: its final chunk's `system_fingerprint` says so.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass the request on, with the headers added to its response."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        follower = scope["app"].state.unlearning  # or an observer, whose `live` is new at each look
        if (broken := follower.live.broken) and not scope["path"].startswith(_ANSWER_WHEN_BROKEN):
            await error_answer(503, f"not serving: {broken}")(scope, receive, send)
            return

        async def send_named(message: "Message") -> None:
            if message["type"] == "http.response.start":
                live = follower.live
                headers = MutableHeaders(scope=message)
                route = scope.get(SERVED_RELEASE)
                headers[RELEASE_HEADER] = route or live.release
                if route is None:
                    headers[GENERATION_HEADER] = str(live.generation)
                if _asks_the_model(scope):
                    metrics.count(metrics.REQUESTS, (route or live.release, str(message["status"])))
            await send(message)

        await self.app(scope, receive, send_named)


def _asks_the_model(scope: "Scope") -> bool:
    path: str = scope["path"]
    return scope["method"] == "POST" and path.startswith("/v1/") and not path.startswith("/v1/unlearning")
