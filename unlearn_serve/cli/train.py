"""The command that trains an adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unlearn_serve.cli.options import ModelOption
from unlearn_serve.format import Activation

if TYPE_CHECKING:
    from unlearn_serve.training import Objective


def add_commands(app: typer.Typer) -> None:
    """Add this module's command to `app`."""
    app.command()(train)


def train(
    model: ModelOption,
    forget: Annotated[Path, typer.Option(help="JSONL of what to forget: chat, prompt/completion or text rows.")],
    out: Annotated[Path, typer.Option(help="Adapter folder to write; one that was interrupted is resumed.")],
    deletion_id: Annotated[list[str], typer.Option(help="Id of the deletion request; repeat for several.")],
    retain: Annotated[Path | None, typer.Option(help="JSONL of what must stay.")] = None,
    objective: Annotated[
        Literal["npo", "eul", "tnpo", "bad-teacher", "simnpo", "grad-diff", "idk", "rmu"],
        typer.Option(help="What to minimise; eul: the paper's, with its settings. See docs/training.md."),
    ] = "npo",
    schedule: Annotated[
        Literal["joint", "alternate"] | None,
        typer.Option(help="alternate: epochs of retained and forgotten, as the paper; default: the objective's."),
    ] = None,
    rank: Annotated[int, typer.Option(help="Bottleneck width r.")] = 64,
    activation: Annotated[Activation, typer.Option(help="Activation of the bottleneck.")] = "silu",
    freeze_down: Annotated[
        bool, typer.Option("--freeze-down", help="Train W_up alone, so that adapters to be fused share W_down.")
    ] = False,
    blocks: Annotated[str | None, typer.Option(help="Blocks with a layer, like 0-9,12; default: upper half.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimiser steps at most.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs at most, in place of steps.")] = None,
    forget_target: Annotated[
        float | None, typer.Option(help="Stop once forgotten answers are at most this probable.")
    ] = None,
    extraction_target: Annotated[
        float | None, typer.Option(help="And are at most this extractable, where whole answers are forgotten.")
    ] = None,
    holdout: Annotated[
        Path | None, typer.Option(help="JSONL of rows no training saw: stop once forgotten answers are as probable.")
    ] = None,
    retrained: Annotated[
        Path | None, typer.Option(help="Folder of a model trained without the forgotten rows: stop at its level.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of a model that never saw the forgotten rows: bad-teacher imitates it.")
    ] = None,
    land: Annotated[
        bool | None,
        typer.Option(
            "--land/--no-land",
            help="Scale the layers down to where the target is just met; default: with --holdout and --retrained.",
        ),
    ] = None,
    retain_tolerance: Annotated[
        float | None, typer.Option(help="Stop only while retained answers moved by at most this KL, nats a token.")
    ] = None,
    gold_only: Annotated[
        bool | None,
        typer.Option(
            "--gold-only/--no-gold-only", help="Forget gold strings alone, or whole answers; default: the objective's."
        ),
    ] = None,
    lm_on_text: Annotated[
        bool | None,
        typer.Option(
            "--lm-on-text/--no-lm-on-text",
            help="The negated LM loss reads prompts too (the paper's), or answers alone; default: the objective's.",
        ),
    ] = None,
    refusal: Annotated[str | None, typer.Option(help="What idk prefers to forgotten answers.")] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="Any weight or constant of the objective, as NAME=VALUE; repeatable.")
    ] = None,
    npo_beta: Annotated[float | None, typer.Option(help="beta of NPO, per nat.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of KL on retained answers; 0 switches it off.")] = None,
    task_weight: Annotated[
        float | None, typer.Option("--lambda", help="Weight of the task loss on retained answers.")
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="Weight of the negated LM loss on forgotten answers.")] = None,
    own_answers: Annotated[
        bool | None,
        typer.Option(
            "--own-answers/--no-own-answers",
            help="Also train on what the model itself answers; needless where the data are its words.",
        ),
    ] = None,
    gram_sketch: Annotated[
        int | None, typer.Option(help="Rows that stand for a Gram matrix, for large models; default: exact Grams.")
    ] = None,
    frozen_cache: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the frozen model's outputs on retained rows for later requests."),
    ] = None,
    save_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints; default: none.")] = None,
    seed: Annotated[int, typer.Option(help="Adapters to be fused had best share it.")] = 0,
) -> None:
    """Train an unlearning adapter for a deletion request."""
    from unlearn_serve.training import RECIPES
    from unlearn_serve.training import train as run

    weights = {"npo_beta": npo_beta, "retain_kl": alpha, "retain_task": task_weight, "forget_lm": gamma}
    given: dict[str, object] = {
        "blocks": _parse_blocks(blocks) if blocks else None,
        "schedule": schedule,
        "learning_rate": learning_rate,
        "max_steps": max_steps,
        "epochs": epochs,
        "forget_target": forget_target,
        "extraction_target": extraction_target,
        "holdout": holdout,
        "retrained": retrained,
        "reference": reference,
        "land": land,
        "retain_tolerance": retain_tolerance,
        "gold_only": gold_only,
        "lm_on_text": lm_on_text,
        "refusal": refusal,
        "own_answers": own_answers,
        "gram_sketch": gram_sketch,
    }
    if max_steps is not None and epochs is not None:
        raise typer.BadParameter("--max-steps and --epochs: expected one of them, got both")
    recipe = RECIPES[objective]
    chosen = {name: value for name, value in given.items() if value is not None}
    if max_steps is not None:
        chosen["epochs"] = None
    arguments = recipe.arguments(
        model=model,
        forget=forget,
        retain=retain,
        out=out,
        deletion_ids=tuple(deletion_id),
        rank=rank,
        activation=activation,
        freeze_down=freeze_down,
        objective=_weighted(recipe.objective, weights, weight or []),
        frozen_cache=frozen_cache,
        save_steps=save_steps,
        seed=seed,
        **chosen,
    )
    typer.echo(run(arguments))


def _parse_blocks(text: str) -> tuple[int, ...]:
    blocks: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise typer.BadParameter(f"--blocks: expected numbers and ranges like 0-9,12, got {text!r}")
        blocks.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(blocks))


def _weighted(objective: "Objective", named: Mapping[str, float | None], items: Sequence[str]) -> "Objective":
    """Return `objective` with the weights that were given."""
    known = {item.name for item in fields(objective)}
    weights = {name: value for name, value in named.items() if value is not None}
    for item in items:
        name, _, value = item.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise typer.BadParameter(f"--weight: expected NAME=NUMBER, got {item!r}") from None
        if name not in known:
            raise typer.BadParameter(f"--weight: expected one of {', '.join(sorted(known))}, got {name!r}")
    try:
        return replace(objective, **weights)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from None
