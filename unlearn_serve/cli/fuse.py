"""The commands that make one adapter of several, and a checkpoint of one."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from unlearn_serve.cli.options import ModelOption


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command()(fuse)
    app.command()(merge)


def fuse(
    adapters: Annotated[list[Path], typer.Argument(help="Adapter folders, two or more.")],
    out: Annotated[Path, typer.Option(help="Adapter folder to write.")],
    method: Annotated[
        Literal["regmean", "cat", "mean"], typer.Option(help="regmean: the paper's; cat: exact sum, ranks add up.")
    ] = "regmean",
    scaling: Annotated[
        Literal["unit", "none"] | None,
        typer.Option(help="unit: each adapter has one say; none: as published, more text has more. Of regmean."),
    ] = None,
    off_diagonal: Annotated[float | None, typer.Option(help="Factor of what is off the Grams' diagonals.")] = None,
    ridge: Annotated[float | None, typer.Option(help="Added to the diagonals, in units of their mean.")] = None,
    retained: Annotated[
        float | None, typer.Option(help="What a retained row counts beside a forgotten one; 1: as published.")
    ] = None,
    gain: Annotated[
        float, typer.Option(help="Multiplies the fused W_up, which falls short where many are fused. Of regmean.")
    ] = 1.0,
) -> None:
    """Fuse adapters into one that covers all their deletion requests, in closed form and without data."""
    from unlearn_serve.fusion import RegMean, fuse_dirs

    given = {"scaling": scaling, "off_diagonal": off_diagonal, "ridge": ridge, "retained": retained}
    chosen = {name: value for name, value in given.items() if value is not None}
    options = RegMean(**chosen) if chosen else None  # type: ignore[arg-type]  # types differ by name
    typer.echo(fuse_dirs(adapters, out, method, options, gain=gain))


def merge(
    model: ModelOption,
    adapter: Annotated[Path, typer.Option(help="Adapter folder; its activation must be identity.")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
) -> None:
    """Fold an identity-activation adapter into the base model's weights: an ordinary checkpoint, not swappable."""
    from unlearn_serve.fusion import merge_dirs

    typer.echo(merge_dirs(model, adapter, out))
