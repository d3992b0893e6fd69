"""Commands on a store: publish, promote, rollback, list, show, verify, gc."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from unlearn_serve.cli.console import stdout
from unlearn_serve.cli.fleet import (
    WAIT_SECONDS,
    FleetOption,
    TimeoutOption,
    UrlsOption,
    WaitOption,
    servers_to_wait_for,
    wait_for_all,
)
from unlearn_serve.cli.trust import SignOption, TrustedOption, actor, open_to_write
from unlearn_serve.errors import StoreError
from unlearn_serve.format import read_adapter_dir, with_evaluation, write_manifest
from unlearn_serve.store import ChannelEntry, Store

StoreOption = Annotated[str, typer.Option("--store", help="Folder or URL of the release store.", metavar="STORE")]
ChannelOption = Annotated[str, typer.Option("--channel", help="Name of the channel.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the channel's history.")]
AllowUncoverOption = Annotated[
    bool,
    typer.Option("--allow-uncover", help="What is deleted now may be known again; needs a reason."),
]
DigestArgument = Annotated[str, typer.Argument(help="Digest of a release, or its first 8 or more digits.")]


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command()(publish)
    app.command()(promote)
    app.command()(rollback)
    app.command(name="list")(list_)
    app.command()(show)
    app.command()(verify)
    app.command()(gc)


def publish(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder, as `train` or `fuse` wrote it.")],
    store: StoreOption,
    sign: SignOption = None,
    gate: Annotated[
        Path | None, typer.Option(help="YAML of thresholds that the adapter's evaluation must meet.")
    ] = None,
) -> None:
    """Verify an adapter and publish it as an immutable release; prints the release's digest.

    With --gate nothing is published unless every threshold holds; the manifest then names the gate.
    """
    if gate is not None:
        _pass_gate(gate, adapter)
    opened, signer = open_to_write(store, sign, None, create=True)
    typer.echo(opened.publish(adapter, actor=actor(), signer=signer))


def promote(
    digest: DigestArgument,
    store: StoreOption,
    channel: ChannelOption = "production",
    reason: ReasonOption = "",
    expect_generation: Annotated[
        int | None, typer.Option(help="Fail with a conflict unless the channel is at this generation now.")
    ] = None,
    allow_uncover: AllowUncoverOption = False,
    sign: SignOption = None,
    trusted_key: TrustedOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = WAIT_SECONDS,
    fleet: FleetOption = None,
    url: UrlsOption = None,
) -> None:
    """Point a channel at a release; servers that follow it swap within a second."""
    servers = servers_to_wait_for(wait, fleet, url)
    opened, signer = open_to_write(store, sign, trusted_key)
    entry = opened.promote(
        opened.resolve(digest),
        channel,
        expected_generation=expect_generation,
        actor=actor(),
        reason=reason,
        allow_uncover=allow_uncover,
        signer=signer,
    )
    _print_move(entry)
    if servers:
        wait_for_all(entry, servers, timeout)


def rollback(
    store: StoreOption,
    channel: ChannelOption = "production",
    to: Annotated[int | None, typer.Option(help="Generation to restore; default: the one before.")] = None,
    reason: ReasonOption = "",
    allow_uncover: AllowUncoverOption = False,
    sign: SignOption = None,
    trusted_key: TrustedOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = WAIT_SECONDS,
    fleet: FleetOption = None,
    url: UrlsOption = None,
) -> None:
    """Point a channel back at the release it named before."""
    servers = servers_to_wait_for(wait, fleet, url)
    opened, signer = open_to_write(store, sign, trusted_key)
    entry = opened.rollback(
        channel, to_generation=to, actor=actor(), reason=reason, allow_uncover=allow_uncover, signer=signer
    )
    _print_move(entry)
    if servers:
        wait_for_all(entry, servers, timeout)


def list_(store: StoreOption) -> None:
    """List the releases and channels of a store."""
    opened = Store.open(store)
    releases = Table("release", "deletion ids", "rank", "activation", "base model", "created")
    for info in opened.releases():
        manifest = info.manifest
        if manifest is None:
            releases.add_row(info.digest[:16], f"[bold red]broken[/]: {info.problem}")
            continue
        releases.add_row(
            info.digest[:16],
            ", ".join(manifest.deletion_ids),
            str(manifest.adapter.rank),
            manifest.adapter.activation,
            manifest.base_model.name,
            f"{manifest.provenance.created_at:%Y-%m-%d %H:%M}",
        )
    stdout.print(releases)
    channels = Table("channel", "generation", "release", "action", "at", "actor", "reason")
    for name in opened.channels():
        entry = opened.channel(name)
        channels.add_row(
            name,
            str(entry.generation),
            entry.release[:16],
            entry.action,
            f"{entry.at:%Y-%m-%d %H:%M:%S}",
            entry.actor,
            f"{entry.reason} (uncovers {', '.join(entry.uncovers)})" if entry.uncovers else entry.reason,
        )
    stdout.print(channels)


def show(digest: DigestArgument, store: StoreOption) -> None:
    """Print a release's manifest as JSON."""
    opened = Store.open(store)
    manifest = opened.load_manifest(opened.resolve(digest))
    stdout.print_json(manifest.to_bytes().decode())


def verify(
    store: StoreOption,
    digest: Annotated[str | None, typer.Argument(help="One release; default: everything in the store.")] = None,
    trusted_key: TrustedOption = None,
) -> None:
    """Re-hash and re-validate releases, channels and signatures; exits with 1 where a problem is found."""
    opened, _ = open_to_write(store, None, trusted_key)
    problems = opened.verify(opened.resolve(digest) if digest else None)
    for problem in problems:
        typer.echo(f"{problem.where}: {problem.message}", err=True)
    if problems:
        raise StoreError(f"{len(problems)} problem{'s' * (len(problems) > 1)} found in {store}")
    typer.echo("ok")


def gc(
    store: StoreOption,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; otherwise it is only listed.")] = False,
    min_age_days: Annotated[
        float, typer.Option(min=0, help="Younger objects are kept: they may be on their way.")
    ] = 7.0,
) -> None:
    """List, or remove, what nothing needs: releases that no channel ever named, and leftovers of killed writers."""
    opened, age = Store.open(store), timedelta(days=min_age_days)
    found = opened.collect_garbage(min_age=age, actor=actor()) if delete else opened.garbage(min_age=age)
    for one in found:
        typer.echo(f"{one.path}: {one.why}, {one.size} bytes")
    done = "removed" if delete else "would be removed; remove with --delete"
    typer.echo(f"{len(found)} object{'s' * (len(found) != 1)}, {sum(one.size for one in found)} bytes {done}")


def _pass_gate(gate: Path, adapter: Path) -> None:
    """Write the gate's verdict into the adapter's manifest, or raise `GateError`."""
    from unlearn_serve.evaluation import Gate

    opened = Gate.read(gate)
    manifest, _ = read_adapter_dir(adapter)
    judged = with_evaluation(manifest, opened.judge(manifest.evaluation, what=str(adapter)))
    if judged != manifest:
        write_manifest(adapter, judged)


def _print_move(entry: ChannelEntry) -> None:
    typer.echo(f"{entry.channel} generation {entry.generation} -> {entry.release}")
