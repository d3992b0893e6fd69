"""Commands of the offline side: train, eval, fuse."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Column, Table

from unlearn_serve.cli.console import stderr, stdout
from unlearn_serve.errors import DataError, ServingError
from unlearn_serve.format import Activation

if TYPE_CHECKING:
    from unlearn_serve.evaluation import Results

ModelOption = Annotated[Path, typer.Option(help="Folder of the base model's checkpoint.")]


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command()(train)
    app.command(name="eval")(eval_)
    app.command()(fuse)


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
    general: Annotated[
        list[Path] | None, typer.Option(help="JSONL of what the model should be good at; repeat for several.")
    ] = None,
    more: Annotated[list[str] | None, typer.Option("--set", help="A further set, as NAME=FILE.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Score what this server answers; --model then gives the tokenizer.")
    ] = None,
    served_model: Annotated[str | None, typer.Option(help="The model's name at --url, where it has several.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="What --json wrote for a model that never saw the forget set.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML report to write; it quotes the data.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="All scores as JSON; it quotes the data.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Examples in one pass.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the confidence intervals.")] = 0,
    record: Annotated[bool, typer.Option(help="Write the scores into the adapter's manifest.")] = True,
) -> None:
    """Measure forgetting, privacy and utility: before and after an adapter, or live on a server."""
    from unlearn_serve.evaluation import evaluate, evaluate_served, read_reference, write_record, write_report

    named = {"forget": forget, "retain": retain, "holdout": holdout, **_general(general or [])}
    sets = {name: path for name, path in named.items() if path is not None}
    for name, path in map(_parse_set, more or []):
        if name in sets:
            raise DataError(f"--set: expected a name of its own for each set, got {name!r} twice")
        sets[name] = path
    if url is not None:
        if adapter is not None:
            raise ServingError("--adapter: expected none with --url, for the server has its own; leave one of them out")
        results = evaluate_served(
            url, served_model, model, sets, max_new_tokens=max_new_tokens, reference=reference, seed=seed
        )
    else:
        results = evaluate(
            model,
            adapter,
            sets,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            reference=reference,
            seed=seed,
            record=record and adapter is not None,
        )
    if as_json is not None:
        write_record(as_json, results)
    if report is not None:
        compared = None if reference is None else read_reference(reference)
        write_report(report, results, adapter_dir=adapter, reference=compared)
    _print_measures(results)


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


def _general(paths: list[Path]) -> dict[str, Path]:
    return {"general" if number == 1 else f"general{number}": path for number, path in enumerate(paths, start=1)}


def _print_measures(results: "Results") -> None:
    phases = list(results.measures)
    names = dict.fromkeys(name for found in results.measures.values() for name in found)
    table = Table(Column("measure", no_wrap=True), *phases, "95 % interval", "rows")
    for name in names:
        found = [results.measures[phase].get(name) for phase in phases]
        last = next(measure for measure in reversed(found) if measure is not None)
        table.add_row(
            name,
            *(f"{measure.value:.4g}" if measure else "-" for measure in found),
            f"{last.low:.3g} to {last.high:.3g}" if last.low is not None and last.high is not None else "-",
            str(last.samples),
        )
    stdout.print(table)
    if results.release:
        stdout.print(f"release {results.release}")
    if phases == ["before"]:
        stderr.print("no adapter was given: this is the plain model")
