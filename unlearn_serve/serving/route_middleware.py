"""Routes at the front door: what `model` names is brought to the workers before vLLM looks at the request."""

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request

from unlearn_serve.errors import RouteRefused, UnlearnServeError
from unlearn_serve.serving import metrics
from unlearn_serve.serving.app_state import ROUTES
from unlearn_serve.serving.error_answer import error_answer
from unlearn_serve.serving.route_fingerprint import naming
from unlearn_serve.serving.routes import Routes, status_of

if TYPE_CHECKING:
    from starlette.responses import JSONResponse
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SERVED_RELEASE = "unlearn_release"
"""Key of the scope under which the release of the request's route is passed to what names it on the response."""

ADAPTER_HEADER = "x-amzn-sagemaker-adapter-identifier"
"""vLLM takes `model` from it on /invocations, behind this middleware."""


REQUEST_ID_HEADER = "x-request-id"
"""vLLM takes the id of most requests from it, and only without it from the body."""


class ServeRoutes:
    """ASGI middleware. Gives `model` its canonical name, and lists aliases on /v1/models."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass a request on once its route is held by every worker; answer it here where that cannot be."""
        routes = getattr(scope["app"].state, ROUTES, None) if scope["type"] == "http" else None
        if routes is None:
            await self.app(scope, receive, send)
        elif scope["method"] == "POST":
            await self._serve(routes, scope, receive, send)
        elif scope["path"] == "/v1/models" and scope["method"] == "GET" and routes.names.aliases:
            await self._list(routes, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _serve(self, routes: Routes, scope: "Scope", receive: "Receive", send: "Send") -> None:
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        document = _parsed(body)
        model = document.get("model") if isinstance(document, dict) else None
        label = routes.names.label(model) if isinstance(model, str) else None
        if routes.names.label(Headers(scope=scope).get(ADAPTER_HEADER, "")) is not None:
            await _refusal(RouteRefused(f"{ADAPTER_HEADER}: name the route in `model`"))(scope, receive, send)
            return
        if label is None:
            await self.app(scope, _replay(body, receive), send)
            return
        try:
            route = await routes.acquire(label)
        except UnlearnServeError as error:
            metrics.REFUSALS.labels("route", type(error).__name__).inc()
            await _refusal(error)(scope, receive, send)
            return
        try:
            document["model"] = route.name
            request_id = _know_by_id(scope, document)
            body = json.dumps(document).encode()
            MutableHeaders(scope=scope)["content-length"] = str(len(body))
            scope[SERVED_RELEASE] = route.release
            named = naming(send, route.release, lambda: not routes.missing_ids(route.deletion_ids))
            with routes.tokens.asked(request_id, route.name):
                await self.app(scope, _replay(body, receive), named)
        finally:
            routes.release(route)

    async def _list(self, routes: Routes, scope: "Scope", receive: "Receive", send: "Send") -> None:
        start: Message = {}
        whole = b""

        async def collect(message: "Message") -> None:
            nonlocal start, whole
            if message["type"] == "http.response.start":
                start = message
                return
            whole += message.get("body", b"")
            if message.get("more_body"):
                return
            body = _with_aliases(whole, routes) if start["status"] == HTTPStatus.OK else whole
            MutableHeaders(scope=start)["content-length"] = str(len(body))
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, collect)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _know_by_id(scope: "Scope", document: dict[str, Any]) -> str:
    """Return the id that vLLM will give the request: the client's, or else one made here, so that it is known.

    Mutates the headers, or for /v1/responses, which does not look there, the document.
    """
    if scope["path"].endswith("/responses"):
        return str(document.setdefault("request_id", f"resp_{uuid4().hex}"))
    given = document.get("request_id")
    default = given if isinstance(given, str) else uuid4().hex
    return MutableHeaders(scope=scope).setdefault(REQUEST_ID_HEADER, default)


def _replay(body: bytes, receive: "Receive") -> "Receive":
    """Return a `receive` that gives `body` first, and then whatever the client still says."""
    given = False

    async def replay() -> "Message":
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _refusal(error: UnlearnServeError) -> "JSONResponse":
    status = HTTPStatus(status_of(error))
    kind = "NotFoundError" if status == HTTPStatus.NOT_FOUND else status.phrase.replace(" ", "") + "Error"
    return error_answer(status, str(error), kind=kind, param="model")


def _with_aliases(listing: bytes, routes: Routes) -> bytes:
    """Add a card for each alias to vLLM's list of models."""
    models = json.loads(listing)
    base = models["data"][0]
    for alias, digest in routes.names.aliases.items():
        card = {**base, "id": alias, "root": routes.names.canonical(digest), "parent": base["id"]}
        models["data"].append(card)
    return json.dumps(models).encode()
