"""Asks servers for their status over HTTP, all at once; what comes back is read as from a stranger."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from unlearn_serve.fleet.servers import Server
from unlearn_serve.format.strict_json import shown
from unlearn_serve.serving.admin_key import ADMIN_HEADER
from unlearn_serve.store.channel_entry import MAX_GENERATION

PATH = "/v1/unlearning/status"
ANSWER_SECONDS = 10.0
"""Longest wait for one answer; a server asks its workers for it, and answers in the middle of a swap too."""


Release = Annotated[str, StringConstraints(pattern="^([0-9a-f]{64}|plain)$")]
Generation = Annotated[int, Field(ge=0, le=MAX_GENERATION)]
UnixTime = Annotated[float, Field(ge=0, lt=2**37, allow_inf_nan=False)]
"""Seconds, up to a year of four digits."""


class _Said(BaseModel):
    """What is needed of the status; a later server may say more."""

    model_config = ConfigDict(strict=True, frozen=True)


class Live(_Said):
    """What a server says is live."""

    release: Release
    generation: Generation
    since: UnixTime


class Worker(_Said):
    """One worker of a server."""

    engine: int = 0
    rank: int
    release: Release | None


class Status(_Said):
    """GET /v1/unlearning/status, see docs/http-api.md."""

    live: Live
    enforced: bool
    channel: str
    seen_generation: Generation
    store_error: str | None
    refused: str | None
    broken: str | None
    workers: list[Worker]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one server said: its status, or why there is none."""

    server: Server
    status: Status | None = None
    raw: Any = None
    """The status as it came."""
    error: str | None = None
    final: bool = False
    """Asking again gives the same error: a wrong key, or something that is none of our servers."""


@asynccontextmanager
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client for any number of servers. It follows no redirect: the admin key goes where the list says."""
    async with httpx.AsyncClient(timeout=ANSWER_SECONDS, limits=httpx.Limits(max_connections=None)) as opened:
        yield opened


async def ask_all(servers: Iterable[Server]) -> list[Answer]:
    """Ask every server once, at the same time; the answers are in the order of `servers`."""
    async with client() as opened:
        return await asyncio.gather(*(ask(opened, server) for server in servers))


async def ask(opened: httpx.AsyncClient, server: Server) -> Answer:
    """Ask one server; never raises for what a server does or does not."""
    headers = {ADMIN_HEADER: server.admin_key} if server.admin_key else {}
    if api_key := os.environ.get(server.api_key_variable):
        headers["Authorization"] = f"Bearer {api_key}"
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            response = await _get(opened, server, headers)
    except TimeoutError:
        return Answer(server=server, error=f"no answer within {ANSWER_SECONDS:g} s")
    except httpx.HTTPError as problem:
        return Answer(server=server, error=f"no answer: {str(problem) or type(problem).__name__}")
    if response.status_code != HTTPStatus.OK:
        passing = response.status_code == HTTPStatus.TOO_MANY_REQUESTS
        final = response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR and not passing
        return Answer(server=server, error=_refusal(response, server), final=final)
    try:
        raw = response.json()
        return Answer(server=server, status=Status.model_validate(raw), raw=raw)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        error = f"expected the status of unlearn-serve, got one in which {where or 'all'}: {first['msg']}"
    except (ValueError, RecursionError):
        error = f"expected the status of unlearn-serve as JSON, got {shown(response.text[:60])}"
    return Answer(server=server, error=error, final=True)


async def _get(opened: httpx.AsyncClient, server: Server, headers: dict[str, str]) -> httpx.Response:
    if server.socket is None:
        return await opened.get(server.url + PATH, headers=headers)
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=server.socket), timeout=ANSWER_SECONDS) as own:
        return await own.get("http://admin" + PATH, headers=headers)


def _refusal(response: httpx.Response, server: Server) -> str:
    """One line: the status, what the server says, and which key was sent where it is about keys."""
    try:
        said = response.json()["error"]["message"]
    except (ValueError, TypeError, KeyError, RecursionError):
        said = response.text
    line = f"expected status 200, got {response.status_code}: {' '.join(str(said).split())[:200]}"
    if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        line += f" (keys sent: {server.admin_key_variable}, {server.api_key_variable})"
    return line
