"""Waits until a generation is live on every server, or until no further waiting would help."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import httpx

from unlearn_serve.fleet.ask import Answer, ask, client
from unlearn_serve.fleet.report import STUCK, Report, Target, judge
from unlearn_serve.fleet.servers import Server

POLL_SECONDS = 0.25


async def wait_until_live(
    servers: Sequence[Server], target: Target, *, timeout: float, changed: Callable[[Report], None]
) -> list[Report]:
    """Ask every server again and again until each is live, or stuck, or the time is over.

    A server that is stuck is told of at once, and asked on while others are waited for: it may be repaired.

    Args:
        servers: whom to ask; each on its own, so that a slow one holds up nobody.
        target: what is to be live.
        timeout: seconds, for all of them together.
        changed: called with a server's report, at first and whenever its state or its problem is another.

    Returns:
        the last report of each, in the order of `servers`.
    """
    reports: dict[str, Report] = {}
    following: list[asyncio.Task[None]] = []

    async def follow(opened: httpx.AsyncClient, server: Server) -> None:
        while True:
            report = judge(await ask(opened, server), target)
            before = reports.get(server.url)
            reports[server.url] = report
            if before is None or (before.state, before.problem) != (report.state, report.problem):
                changed(report)
            if len(reports) == len(servers) and all(one.state in STUCK | {"live"} for one in reports.values()):
                for task in following:
                    task.cancel()
            if report.state == "live":
                return
            await asyncio.sleep(POLL_SECONDS)

    with suppress(TimeoutError):
        async with client() as opened, asyncio.timeout(timeout), asyncio.TaskGroup() as group:
            following += [group.create_task(follow(opened, server)) for server in servers]
    silent = f"no answer within {timeout:g} s"
    return [reports.get(one.url) or judge(Answer(server=one, error=silent), target) for one in servers]
