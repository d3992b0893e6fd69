"""No request body is larger than it may be: whoever reads one keeps all of it in memory."""

from typing import TYPE_CHECKING

from fastapi import HTTPException
from starlette.datastructures import Headers

from unlearn_serve.serving.error_answer import error_answer
from unlearn_serve.serving.guard import ADMITTED

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ADMIN_BODY_BYTES = 16 * 1024
"""Largest body of a call that is the admin's: a rollback with a reason of 1000 escaped characters takes 12 KiB."""


class BodyTooLarge(HTTPException):
    """Raised out of `receive`. FastAPI lets HTTPExceptions through, and vLLM's handler answers it in the usual form."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"expected a body of at most {limit} bytes, got more")


class BodyLimit:
    """ASGI middleware, inside of Guard. Answers 413 before a body is read, or once more than the limit has come."""

    def __init__(self, app: "ASGIApp", *, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass the request on, with a `receive` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = ADMIN_BODY_BYTES if scope.get(ADMITTED) else self.max_bytes
        received, answered = 0, False

        async def bounded() -> "Message":
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise BodyTooLarge(limit)
            return message

        async def noted(message: "Message") -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            if int(Headers(scope=scope).get("content-length", "0")) > limit:
                raise BodyTooLarge(limit)
            await self.app(scope, bounded, noted)
        except BodyTooLarge as error:  # where one of our own middlewares read the body
            if answered:
                raise
            await error_answer(413, error.detail)(scope, receive, send)
