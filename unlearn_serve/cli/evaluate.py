"""The command that measures what was forgotten, and what else."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from unlearn_serve.cli.console import stderr, stdout
from unlearn_serve.cli.options import ModelOption
from unlearn_serve.errors import DataError, ServingError

if TYPE_CHECKING:
    from unlearn_serve.evaluation import Results


def add_commands(app: typer.Typer) -> None:
    """Add this module's command to `app`."""
    app.command(name="eval")(eval_)


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
