"""The command status: of one server in detail, or of many beside their channel."""

import asyncio
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from unlearn_serve.cli.console import stdout
from unlearn_serve.cli.fleet import FleetOption, UrlsOption, exit_unless_live, named_servers, show
from unlearn_serve.cli.store import ChannelOption
from unlearn_serve.errors import ServingError
from unlearn_serve.fleet import Report, Server, Target, ask_all, judge, newest
from unlearn_serve.store import Store

DEFAULT_URL = "http://127.0.0.1:8000"


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command()(status)


def status(
    url: UrlsOption = None,
    fleet: FleetOption = None,
    channel: ChannelOption = "production",
    store: Annotated[
        str | None, typer.Option(metavar="STORE", help="Compare with what the channel says here, not with the others.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; of one server, its answer as it came.")] = False,
) -> None:
    """Show what is live, on which workers, since when; the admin key comes from UNLEARN_ADMIN_KEY.

    With --fleet, --store or several --url: each server's generation; exits with 3 unless all are live on the channel's.
    """
    servers = named_servers(fleet, url or ([] if fleet else [DEFAULT_URL]))
    if fleet is None and store is None and len(servers) == 1:
        _show_one(servers[0], as_json=as_json)
        return
    target = Target.of(Store.open(store).channel(channel)) if store else None
    answers = asyncio.run(ask_all(servers))
    if target is None:
        target = newest(answers, channel)
    reports = [judge(answer, target) for answer in answers]
    if as_json:
        stdout.print_json(data=_document(reports, target), ensure_ascii=True)
    else:
        show(reports, target)
    exit_unless_live(reports)


def _document(reports: list[Report], target: Target) -> dict[str, Any]:
    servers = [
        {
            "name": report.answer.server.label,
            "url": report.answer.server.url,
            "state": report.state,
            "problem": report.problem,
            "status": report.answer.raw,
        }
        for report in reports
    ]
    live = all(report.state == "live" for report in reports)
    return {
        "channel": target.channel,
        "generation": target.generation,
        "release": target.release,
        "live": live,
        "servers": servers,
    }


def _show_one(server: Server, *, as_json: bool) -> None:
    (found,) = asyncio.run(ask_all([server]))
    if found.status is None:
        raise ServingError(f"{server.url}: {found.error}")
    if as_json:
        stdout.print_json(data=found.raw, ensure_ascii=True)
        return
    answer: dict[str, Any] = found.raw
    live = answer["live"]
    summary = Table(show_header=False, box=None)
    summary.add_row("release", live["release"])
    summary.add_row("generation", f"{live['generation']} of channel {answer['channel']} in {answer['store']}")
    summary.add_row("deletion ids", ", ".join(live["deletion_ids"]) or "none: this is the plain model")
    summary.add_row("since", _moment(live["since"]))
    for problem in ("broken", "refused", "store_error"):
        if answer[problem]:
            summary.add_row(f"[bold red]{problem.replace('_', ' ')}[/]", answer[problem])
    stdout.print(summary)
    several = len({worker.get("engine", 0) for worker in answer["workers"]}) > 1
    workers = Table("engine.rank" if several else "worker", "pid", "release", "sites", "since", "staging")
    for worker in answer["workers"]:
        workers.add_row(
            f"{worker.get('engine', 0)}.{worker['rank']}" if several else str(worker["rank"]),
            str(worker["pid"]),
            (worker["release"] or "plain")[:16],
            str(len(worker["sites"])),
            _moment(worker["since"]) if worker["since"] else "start",
            worker["staging"],
        )
    stdout.print(workers)


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"
