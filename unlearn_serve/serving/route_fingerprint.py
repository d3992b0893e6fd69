"""`system_fingerprint` of responses under a route: vLLM has one for all requests, so it is exchanged on the way out."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders

from unlearn_serve.serving.live import PLAIN

if TYPE_CHECKING:
    from starlette.types import Message, Send

# Inside a JSON string its quotes would be escaped, so this never matches what a model wrote.
_FINGERPRINT = re.compile(rb'("system_fingerprint":\s*")unlearn-[0-9a-z-]+(")')


def route_fingerprint(release: str) -> str:
    """Return the value for a release that a request named: unlearn-<16 digits>-route, or unlearn-plain-route."""
    return f"unlearn-{release if release == PLAIN else release[:16]}-route"


def naming(send: "Send", release: str, served: Callable[[], bool]) -> "Send":
    """Return a `send` that names `release` in what it passes on, as long as `served` says that it is served.

    Every chunk of a stream, and every whole response, is one message of vLLM's, so no value is ever cut in two.
    """
    value = rb"\g<1>" + route_fingerprint(release).encode() + rb"\g<2>"
    start: Message | None = None

    async def send_named(message: "Message") -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
            return
        if message["type"] == "http.response.body" and served():
            message = {**message, "body": _FINGERPRINT.sub(value, message.get("body", b""))}
        if start is not None:
            headers = MutableHeaders(scope=start)
            if "content-length" in headers and not message.get("more_body"):
                headers["content-length"] = str(len(message.get("body", b"")))
            await send(start)
            start = None
        await send(message)

    return send_named
