"""The command serve."""

import os
from typing import Annotated

import typer

from unlearn_serve.cli.store import ChannelOption, StoreOption
from unlearn_serve.cli.trust import TrustedOption
from unlearn_serve.format.keys import read_public_key
from unlearn_serve.serving.config import DRAIN_TIMEOUT_SECONDS, SwapMode


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=passed_on)(serve)


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Base model: a folder or a name, as for `vllm serve`.")],
    store: StoreOption,
    channel: ChannelOption = "production",
    allow_plain: Annotated[
        bool, typer.Option("--allow-plain", help="Start on the plain model where the channel names no release yet.")
    ] = False,
    max_rank: Annotated[int, typer.Option(min=1, max=1024, help="Largest rank of a release; sizes the buffers.")] = 128,
    swap_mode: Annotated[
        SwapMode, typer.Option(help="What a swap does with running requests: recompute, drain or abort.")
    ] = "recompute",
    drain_timeout: Annotated[
        float, typer.Option(min=0, max=3600, help="Longest drain, in seconds; recompute follows.")
    ] = DRAIN_TIMEOUT_SECONDS,
    routes: Annotated[
        int, typer.Option(help="Releases that requests may name and that are served at a time; 0: only the channel's.")
    ] = 0,
    route_alias: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIGEST", help="A name for a route; may be given again.")
    ] = None,
    allow_uncovered_routes: Annotated[
        bool,
        typer.Option("--allow-uncovered-routes", help="Serve routes that lack deletion ids of the channel's release."),
    ] = False,
    admin_listen: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="IP:PORT or unix:PATH for the admin routes; off the public port then."),
    ] = None,
    state_dir: Annotated[str | None, typer.Option(help="Folder for the last applied release and audit log.")] = None,
    trusted_key: TrustedOption = None,
) -> None:
    """Serve a model under a channel's release; all other flags go to `vllm serve`."""
    from unlearn_serve.serving.config import ServingConfig
    from unlearn_serve.serving.launch import serve as exec_vllm

    config = ServingConfig(
        store=_absolute(store),
        channel=channel,
        allow_plain=allow_plain,
        max_rank=max_rank,
        swap_mode=swap_mode,
        drain_timeout_seconds=drain_timeout,
        routes=routes,
        route_aliases=_aliases(route_alias or []),
        allow_uncovered_routes=allow_uncovered_routes,
        admin_listen=_listen_address(admin_listen),
        state_dir=state_dir,
        trusted_keys=tuple(read_public_key(path) for path in trusted_key or []),
    )
    exec_vllm(model, config, context.args)


def _aliases(given: list[str]) -> dict[str, str]:
    aliases = {}
    for text in given:
        name, separator, digest = text.partition("=")
        if not separator:
            raise typer.BadParameter(f"expected NAME=DIGEST, got {text!r}", param_hint="--route-alias")
        aliases[name] = digest
    return aliases


def _listen_address(given: str | None) -> str | None:
    from unlearn_serve.serving.listen_address import ListenAddress

    try:
        return given and str(ListenAddress.parse(given))
    except ValueError as error:
        raise typer.BadParameter(f"{error}, got {given!r}", param_hint="--admin-listen") from error


def _absolute(store: str) -> str:
    # The workers may run in another folder than this command.
    return store if "://" in store else os.path.abspath(store)  # noqa: PTH100 - pathlib would resolve links
