"""HTTP: what the admin sees and does of routes, under /v1/unlearning/routes."""

from typing import Annotated, Any

from fastapi import Depends, HTTPException, Path, Request

from unlearn_serve.errors import UnlearnServeError
from unlearn_serve.serving.admitted import admin_router
from unlearn_serve.serving.app_state import ROUTES, STATE
from unlearn_serve.serving.error_answer import documented
from unlearn_serve.serving.routes import Routes, status_of

router = admin_router()


def routes_of(request: Request) -> Routes:
    """Return the routes of this server's app."""
    routes: Routes | None = getattr(request.app.state, ROUTES)
    if routes is None:
        raise HTTPException(404, "this server has no routes: start it with --routes N")
    return routes


@router.get("/routes", responses=documented(404))
async def listing(request: Request, routes: Annotated[Routes, Depends(routes_of)]) -> dict[str, Any]:
    """List the routes that the workers hold, least recently used first."""
    workers = await getattr(request.app.state, STATE).swapper.workers()
    on_worker = [{route["release"]: route for route in worker["routes"]} for worker in workers]
    return {
        "slots": routes.config.routes,
        "capacity": routes.capacity,
        "aliases": routes.names.aliases,
        "routes": [
            {
                "release": route.release,
                "model": route.name,
                "deletion_ids": sorted(route.deletion_ids),
                "missing_ids": routes.missing_ids(route.deletion_ids),
                "requests": route.requests,
                "slot": [held.get(route.release, {}).get("slot") for held in on_worker],
            }
            for route in routes.held
        ],
    }


@router.delete("/routes/{release}", responses=documented(404, 409))
async def evict(
    release: Annotated[str, Path(pattern="^([0-9a-f]{64}|plain)$")], routes: Annotated[Routes, Depends(routes_of)]
) -> dict[str, Any]:
    """Take a route out of every worker's memory; the next request that names it brings it back."""
    try:
        await routes.evict(release)
    except UnlearnServeError as error:
        raise HTTPException(status_of(error), str(error)) from error
    return {"evicted": release}
