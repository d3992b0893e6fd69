"""What the admin routes say of the admin key, in OpenAPI and for the case that no Guard stands before them."""

from fastapi import APIRouter, Depends, HTTPException, Request, Security
from fastapi.security import APIKeyHeader

from unlearn_serve.serving.admin_key import ADMIN_HEADER
from unlearn_serve.serving.error_answer import FormKeepingRoute, documented
from unlearn_serve.serving.guard import ADMITTED

_SCHEME = APIKeyHeader(name=ADMIN_HEADER, scheme_name="admin key", auto_error=False)


def require_admin(request: Request, _: str | None = Security(_SCHEME)) -> None:
    """Let only calls pass that `Guard` has let in."""
    if not request.scope.get(ADMITTED):
        raise HTTPException(403, "admin endpoints are off: nothing guards them")


def admin_router() -> APIRouter:
    """Return an empty router of admin routes, under /v1/unlearning."""
    return APIRouter(
        prefix="/v1/unlearning",
        tags=["unlearning"],
        dependencies=[Depends(require_admin)],
        responses=documented(400, 401, 403, 429),  # whatever an admin route is asked
        route_class=FormKeepingRoute,
    )
