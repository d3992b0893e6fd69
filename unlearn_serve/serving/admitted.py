"""What the admin routes say of the admin key, in OpenAPI and for the case that no Guard stands before them."""

from fastapi import HTTPException, Request, Security
from fastapi.security import APIKeyHeader

from unlearn_serve.serving.admin_key import ADMIN_HEADER
from unlearn_serve.serving.error_answer import documented
from unlearn_serve.serving.guard import ADMITTED

_SCHEME = APIKeyHeader(name=ADMIN_HEADER, scheme_name="admin key", auto_error=False)

REFUSALS = documented(400, 401, 403, 429)
"""FastAPI's `responses` for what each admin route may answer."""


def require_admin(request: Request, _: str | None = Security(_SCHEME)) -> None:
    """Let only calls pass that `Guard` has let in."""
    if not request.scope.get(ADMITTED):
        raise HTTPException(403, "admin endpoints are off: nothing guards them")
