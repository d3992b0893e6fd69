"""What is the operator's is behind the admin key: our admin routes, and vLLM's that load, pause or reconfigure."""

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.routing import Match

from unlearn_serve.serving.admin_door import AdminDoor, Refusal
from unlearn_serve.serving.error_answer import error_answer
from unlearn_serve.serving.open_paths import OPEN_PATHS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

ADMITTED = "unlearn_admitted"
"""Key of the scope that is true where the call has passed the door."""

_HERE_NOBODY = "this port takes no admin calls: they have an address of their own (admin_listen)"


class Guard:
    """ASGI middleware. Whatever leads to a route whose path is not open needs the admin key, before its body is read.

    A path that leads nowhere is passed on, to be answered 404.
    """

    def __init__(self, app: "ASGIApp", *, door: AdminDoor | None) -> None:
        """`door` None: nobody is let in here."""
        self.app = app
        self._door = door

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass on what is open or let in; answer the rest here."""
        if scope["type"] not in ("http", "websocket") or _is_open(scope):
            await self.app(scope, receive, send)
            return
        refusal = await self._refusal(scope)
        if refusal is None:
            scope[ADMITTED] = True
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it was accepted: status 403
        else:
            headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after else None
            await error_answer(refusal.status, refusal.message, headers=headers)(scope, receive, send)

    async def _refusal(self, scope: "Scope") -> Refusal | None:
        if self._door is None:
            return Refusal(status=403, message=_HERE_NOBODY)
        host, _ = scope.get("client") or ("a Unix socket", 0)
        return await self._door.refusal(Headers(scope=scope), host)


def _is_open(scope: "Scope") -> bool:
    if scope["path"] in OPEN_PATHS:
        return True
    for route in scope["app"].router.routes:
        if route.matches(scope)[0] is not Match.NONE and getattr(route, "path", None) not in OPEN_PATHS:
            return False
    return True
