"""What commands on several servers share: which ones, the wait until all are live, and how they are shown."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from unlearn_serve.cli.console import stderr, stdout
from unlearn_serve.fleet import Report, Server, Target, read_fleet, require_admin_keys, servers_at, wait_until_live
from unlearn_serve.store import ChannelEntry

NOT_ALL_LIVE = 3
"""Exit status: a server is not live on the generation; 1 is left for what was not done at all."""

WAIT_SECONDS = 60.0

FleetOption = Annotated[Path | None, typer.Option("--fleet", metavar="FILE", help="YAML or JSON list of servers.")]
UrlsOption = Annotated[list[str] | None, typer.Option("--url", help="Base URL of a server, may be repeated.")]
WaitOption = Annotated[
    bool,
    typer.Option("--wait", help="Return when every server of --fleet or --url is live on it; exits with 3 if not."),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0, help="Longest wait, in seconds.")]


def named_servers(fleet: Path | None, urls: list[str] | None) -> list[Server]:
    """The servers that the options name; none where they are not given.

    Raises:
        FormatError: the file or a URL is not what it should be.
    """
    if fleet is not None and urls:
        raise typer.BadParameter("expected either --fleet or --url, got both", param_hint="--fleet")
    return read_fleet(fleet) if fleet is not None else servers_at(urls or [])


def servers_to_wait_for(wait: bool, fleet: Path | None, urls: list[str] | None) -> list[Server]:
    """As `named_servers`, for a command that moves a channel: to be called before it does.

    Raises:
        FormatError: see there.
        ServingError: the servers' admin key is not set.
    """
    named = named_servers(fleet, urls)
    if wait and not named:
        raise typer.BadParameter("expected --fleet FILE or --url URL too: whom to wait for", param_hint="--wait")
    if named and not wait:
        raise typer.BadParameter("expected --wait too", param_hint="--fleet" if fleet else "--url")
    require_admin_keys(named)
    return named


def wait_for_all(entry: ChannelEntry, servers: Sequence[Server], timeout: float) -> None:
    """Wait until the channel's entry is live on all servers, tell how it goes, and exit with 3 if it is not."""
    target = Target.of(entry)
    live: set[str] = set()

    def changed(report: Report) -> None:
        label = report.answer.server.label
        live.discard(label)
        if report.state == "live":
            live.add(label)
        _tell(report)
        waiting.update(_counted(len(live), len(servers), target))

    with stderr.status(_counted(0, len(servers), target)) as waiting:
        reports = asyncio.run(wait_until_live(servers, target, timeout=timeout, changed=changed))
    show(reports, target)
    exit_unless_live(reports)


def show(reports: Sequence[Report], target: Target) -> None:
    """Print a table of the servers, and name on stderr those that are not live."""
    table = Table("server", "state", "generation", "release", "workers", "since")
    for report in reports:
        status = report.answer.status
        colour = "green" if report.state == "live" else "bold red"
        row = ["", "", "", ""]
        if status is not None:
            since = f"{datetime.fromtimestamp(status.live.since).astimezone():%Y-%m-%d %H:%M:%S}"
            on_it = sum(worker.release == status.live.release for worker in status.workers)
            workers = f"{on_it} of {len(status.workers)}"
            row = [str(status.live.generation), status.live.release[:16], workers, since]
        table.add_row(Text(report.answer.server.label), f"[{colour}]{report.state}[/]", *row)
    stdout.print(table)
    left = [report for report in reports if report.state != "live"]
    typer.echo(_counted(len(reports) - len(left), len(reports), target))
    for report in left:
        _tell(report)


def exit_unless_live(reports: Iterable[Report]) -> None:
    """Exit with 3 where a server is not live."""
    if any(report.state != "live" for report in reports):
        raise typer.Exit(NOT_ALL_LIVE)


def _counted(live: int, servers: int, target: Target) -> str:
    return f"{live} of {servers} live on generation {target.generation} of channel {target.channel}"


def _tell(report: Report) -> None:
    """One line on stderr: which server, where it stands, and why."""
    words = (report.answer.server.label, report.state, report.problem)
    stderr.print(": ".join(word for word in words if word), markup=False, highlight=False, soft_wrap=True)
