"""HTTP: the admin routes under /v1/unlearning."""

import asyncio
import os
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from unlearn_serve.errors import ChannelConflict, StoreUnavailable, SwapError, UnlearnServeError
from unlearn_serve.serving.admitted import admin_router
from unlearn_serve.serving.app_state import STATE
from unlearn_serve.serving.config import SwapMode
from unlearn_serve.serving.error_answer import documented
from unlearn_serve.serving.follower import Follower


def follower_of(request: Request) -> Follower:
    """Return the follower of this server's app."""
    follower: Follower = getattr(request.app.state, STATE)
    return follower


router = admin_router()


class RollbackRequest(BaseModel):
    """Body of POST /v1/unlearning/rollback."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str = Field("", max_length=1000)
    actor: str = Field("admin endpoint", min_length=1, max_length=128)
    to_generation: int | None = Field(None, ge=1)
    allow_uncover: bool = False
    """What only the later release deleted may be known again; needs a reason."""


class ApplyRequest(BaseModel):
    """Body of POST /v1/unlearning/apply."""

    model_config = ConfigDict(extra="forbid", strict=True)

    mode: SwapMode | None = None


@router.get("/status")
async def status(follower: Annotated[Follower, Depends(follower_of)]) -> dict[str, Any]:
    """Report what is live, on which workers, since when."""
    live = follower.live
    workers = await follower.swapper.workers()
    swaps = [record for record in live.swaps if record.event == "swap"]
    return {
        "live": {
            "release": live.release,
            "generation": live.generation,
            "deletion_ids": live.deletion_ids,
            "since": live.since,
            "fingerprint": live.fingerprint,
        },
        "enforced": live.entry is not None and {worker["release"] for worker in workers} == {live.release},
        "channel": follower.config.channel,
        "seen_generation": follower.seen_generation,
        "store": follower.config.store,
        "store_error": live.store_error,
        "refused": live.refused,
        "broken": live.broken,
        "server_pid": os.getpid(),
        "workers": workers,
        "last_swap": swaps[-1].model_dump(mode="json") if swaps else None,
    }


@router.get("/history")
async def history(follower: Annotated[Follower, Depends(follower_of)]) -> dict[str, Any]:
    """Return this server's swaps, refusals and other events since it started, oldest first."""
    return {
        "audit_log": str(follower.audit.path),
        "events": [record.model_dump(mode="json") for record in follower.live.swaps],
    }


@router.post("/apply", responses=documented(409, 413, 503))
async def apply(
    follower: Annotated[Follower, Depends(follower_of)], body: ApplyRequest | None = None
) -> dict[str, Any]:
    """Look at the channel now and swap to its newest entry, refused before or not; null where it is live already."""
    return {"applied": await _apply(follower, body.mode if body else None)}


@router.post("/rollback", responses=documented(409, 413, 503))
async def rollback(body: RollbackRequest, follower: Annotated[Follower, Depends(follower_of)]) -> dict[str, Any]:
    """Roll the channel back, for every server that follows it, and swap here at once."""

    def move() -> int:
        store = follower.config.open_store()
        entry = store.rollback(
            follower.config.channel,
            to_generation=body.to_generation,
            actor=body.actor,
            reason=body.reason,
            allow_uncover=body.allow_uncover,
        )
        return entry.generation

    try:
        generation = await asyncio.to_thread(move)
    except ChannelConflict as error:
        raise HTTPException(409, str(error)) from error
    except StoreUnavailable as error:
        raise HTTPException(503, str(error)) from error
    except UnlearnServeError as error:
        raise HTTPException(400, str(error)) from error
    return {"generation": generation, "applied": await _apply(follower)}


async def _apply(follower: Follower, mode: SwapMode | None = None) -> dict[str, Any] | None:
    try:
        record = await follower.apply_newest(again=True, mode=mode)
    except SwapError as error:
        raise HTTPException(503 if follower.live.broken else 409, str(error)) from error
    except UnlearnServeError as error:
        raise HTTPException(409, str(error)) from error
    if record is None and follower.live.store_error:
        raise HTTPException(503, follower.live.store_error)
    return record.model_dump(mode="json") if record else None
