"""Commands of the offline side: train, eval, fuse, merge."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from unlearn_serve.cli.console import stderr, stdout
from unlearn_serve.errors import DataError
from unlearn_serve.format import Activation, Evaluation

ModelOption = Annotated[Path, typer.Option(help="Folder of the base model's checkpoint.")]


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command()(train)
    app.command(name="eval")(eval_)
    app.command()(fuse)
    app.command()(merge)


def train(
    model: ModelOption,
    forget: Annotated[Path, typer.Option(help="JSONL of what to forget: chat, prompt/completion or text rows.")],
    out: Annotated[Path, typer.Option(help="Adapter folder to write; one that was interrupted is resumed.")],
    deletion_id: Annotated[list[str], typer.Option(help="Id of the deletion request; repeat for several.")],
    retain: Annotated[Path | None, typer.Option(help="JSONL of what must stay.")] = None,
    objective: Annotated[
        Literal["npo", "eul"], typer.Option(help="npo: bounded, the default; eul: the paper's.")
    ] = "npo",
    schedule: Annotated[
        Literal["joint", "alternate"], typer.Option(help="alternate: epochs of retained and forgotten, as the paper.")
    ] = "joint",
    rank: Annotated[int, typer.Option(help="Bottleneck width r.")] = 64,
    activation: Annotated[Activation, typer.Option(help="Activation of the bottleneck.")] = "silu",
    blocks: Annotated[str | None, typer.Option(help="Blocks with a layer, like 0-9,12; default: upper half.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimiser steps at most.")] = None,
    forget_target: Annotated[
        float | None, typer.Option(help="Stop once forgotten answers are at most this probable.")
    ] = None,
    retain_tolerance: Annotated[
        float | None, typer.Option(help="Stop only while retained answers moved by at most this KL, nats a token.")
    ] = None,
    gold_only: Annotated[
        bool, typer.Option(help="Forget an answer's gold string alone, or with --no-gold-only whole answers.")
    ] = True,
    npo_beta: Annotated[float | None, typer.Option(help="beta of NPO, per nat.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of KL on retained answers; 0 switches it off.")] = None,
    task_weight: Annotated[
        float | None, typer.Option("--lambda", help="Weight of the task loss on retained answers.")
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="Weight of the negated LM loss on forgotten answers.")] = None,
    own_answers: Annotated[
        bool, typer.Option(help="Also train on what the model itself answers; needless where the data are its words.")
    ] = True,
    save_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints; default: none.")] = None,
    seed: Annotated[int, typer.Option(help="Adapters to be fused had best share it.")] = 0,
) -> None:
    """Train an unlearning adapter for a deletion request."""
    from unlearn_serve.training import EUL, NPO, TrainArgs
    from unlearn_serve.training import train as run

    weights = {"npo_beta": npo_beta, "retain_kl": alpha, "retain_task": task_weight, "forget_lm": gamma}
    limits = {
        "learning_rate": learning_rate,
        "max_steps": max_steps,
        "forget_target": forget_target,
        "retain_tolerance": retain_tolerance,
    }
    arguments = TrainArgs(
        model=model,
        forget=forget,
        retain=retain,
        out=out,
        deletion_ids=tuple(deletion_id),
        rank=rank,
        activation=activation,
        blocks=_parse_blocks(blocks) if blocks else None,
        objective=replace(
            NPO if objective == "npo" else EUL, **{name: value for name, value in weights.items() if value is not None}
        ),
        schedule=schedule,
        gold_only=gold_only,
        own_answers=own_answers,
        save_steps=save_steps,
        seed=seed,
        **{name: value for name, value in limits.items() if value is not None},  # type: ignore[arg-type]
    )
    typer.echo(run(arguments))


def eval_(
    model: ModelOption,
    forget: Annotated[Path, typer.Option(help="JSONL of what was to be forgotten.")],
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder; without it the plain model is scored.")] = None,
    retain: Annotated[Path | None, typer.Option(help="JSONL of what was to stay.")] = None,
    holdout: Annotated[Path | None, typer.Option(help="JSONL of what no training saw.")] = None,
    more: Annotated[list[str] | None, typer.Option("--set", help="A further set, as NAME=FILE.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Examples in one pass.")] = 16,
    record: Annotated[bool, typer.Option(help="Write the scores into the adapter's manifest.")] = True,
) -> None:
    """Score a model before and after an adapter: accuracy and probability of the gold answers."""
    from unlearn_serve.evaluation import evaluate

    sets = {"forget": forget, "retain": retain, "holdout": holdout, **dict(_parse_set(item) for item in more or [])}
    evaluation = evaluate(
        model,
        adapter,
        {name: path for name, path in sets.items() if path is not None},
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        record=record and adapter is not None,
    )
    _print_scores(evaluation)


def fuse(
    adapters: Annotated[list[Path], typer.Argument(help="Adapter folders, two or more.")],
    out: Annotated[Path, typer.Option(help="Adapter folder to write.")],
    method: Annotated[
        Literal["regmean", "cat", "mean"], typer.Option(help="regmean: the paper's; cat: exact sum, ranks add up.")
    ] = "regmean",
) -> None:
    """Fuse adapters into one that covers all their deletion requests, in closed form and without data."""
    from unlearn_serve.fusion import fuse_dirs

    typer.echo(fuse_dirs(adapters, out, method))


def merge(
    model: ModelOption,
    adapter: Annotated[Path, typer.Option(help="Adapter folder; its activation must be identity.")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
) -> None:
    """Fold an identity-activation adapter into the base model's weights: an ordinary checkpoint, not swappable."""
    from unlearn_serve.fusion import merge_dirs

    typer.echo(merge_dirs(model, adapter, out))


def _parse_blocks(text: str) -> tuple[int, ...]:
    blocks: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise typer.BadParameter(f"--blocks: expected numbers and ranges like 0-9,12, got {text!r}")
        blocks.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(blocks))


def _parse_set(item: str) -> tuple[str, Path]:
    name, separator, path = item.partition("=")
    if not separator:
        raise DataError(f"--set: expected NAME=FILE, got {item!r}")
    return name, Path(path)


def _print_scores(evaluation: Evaluation) -> None:
    table = Table("set", "samples", "accuracy before", "after", "probability before", "after")
    for name, before in evaluation.before.items():
        after = evaluation.after.get(name)
        table.add_row(
            name,
            str(before.samples),
            f"{before.accuracy:.3f}",
            f"{after.accuracy:.3f}" if after else "-",
            f"{before.probability:.4f}",
            f"{after.probability:.4f}" if after else "-",
        )
    stdout.print(table)
    if not evaluation.after:
        stderr.print("no adapter was given: this is the plain model")
