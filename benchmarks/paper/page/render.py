"""docs/results.md and its plots, out of the result files alone."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.bars import bars
from benchmarks.paper.page import conclusions, tables, tofu
from benchmarks.paper.page.grid import Result, grid
from benchmarks.paper.page.notes import INTRODUCTION, SECTIONS
from benchmarks.paper.page.pictures import draw
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.summary import NAME as SUMMARY
from benchmarks.paper.summary import machine_of, write_summary


def render(results: Path, page: Path, sizes: Sizes) -> str:
    """Write summary.json, the plots beside it and the page; returns the bars as text."""
    summary = write_summary(results)
    pictures = {path.stem: os.path.relpath(path, page.parent) for path in draw(results, summary)}
    parts = [
        _worded(INTRODUCTION, sizes),
        _bars(summary),
        _section(sizes, "tofu", tofu.tofu(results), pictures.get("tofu")),
        _section(sizes, "blocks_study", tofu.blocks_study(results, sizes.blocks_study)),
        _section(sizes, "guards_study", tofu.guards_study(results, sizes.guards_study)),
        _section(sizes, "sequence", tofu.sequence(summary), pictures.get("sequence")),
        _section(sizes, "gram_study", tofu.gram_study(results)),
        _section(sizes, "robustness", tofu.robustness(results), pictures.get("robustness")),
        _section(sizes, "imdb", tables.table(results, "imdb")),
        _section(sizes, "samsum", tables.table(results, "samsum")),
        _section(sizes, "ablation", tables.ablation(results)),
        _section(sizes, "mislabelled", tables.mislabelled(results)),
        _section(sizes, "membership", tables.membership(results)),
        _section(sizes, "cost", conclusions.cost(results, summary)),
        _section(sizes, "shape", conclusions.claims(results)),
        _made(results),
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join(part.strip() for part in parts if part) + "\n")
    return "\n".join(
        f"{bar.what:62} {bar.asked:42} {bar.aim:>5}  {bar.verdict:12}  {bar.found}" for bar in bars(summary)
    )


def _section(sizes: Sizes, name: str, body: str, picture: str | None = None) -> str:
    if not body:
        return ""
    title, text = SECTIONS[name]
    shown = f"\n\n![{title}]({picture})" if picture else ""
    return f"## {title}\n\n{_worded(text, sizes)}{shown}\n\n{body}"


def _worded(text: str, sizes: Sizes) -> str:
    authors = sizes.tofu.requests + sizes.tofu.guards
    kept = (authors - 1) * sizes.tofu.questions
    return text.strip().format(s=sizes, authors=authors, kept=kept)


def _bars(summary: Result) -> str:
    rows = [(one.what, one.asked, one.aim, one.found, one.verdict) for one in bars(summary)]
    return grid(("bar", "must be", "aim", "found", ""), rows)


def _made(results: Path) -> str:
    files = [path for path in sorted(results.rglob("*.json")) if path != results / SUMMARY]
    records = [json.loads(path.read_text()) for path in files]
    if not records:
        return ""
    machines = sorted({machine_of(one) for one in records})
    versions = records[-1]["versions"]
    total = sum(one["seconds"] for one in records)
    return (
        "## How it was made\n\n"
        f"`make paper`: {len(records)} stages of {total / 60:.0f} minutes of a core in all, on "
        f"{', and on '.join(machines)}. {_wall(records)} Versions: "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}. Each file of "
        "`benchmarks/results/paper/` names its settings, machine, commit and time."
    )


def _wall(records: Sequence[Mapping[str, Any]]) -> str:
    """What it comes to with two stages side by side; on several machines only what each of them did."""
    by_machine: dict[str, float] = {}
    for one in records:
        by_machine[machine_of(one)] = by_machine.get(machine_of(one), 0.0) + one["seconds"]
    if len(by_machine) == 1:
        return f"Two side by side that is {sum(by_machine.values()) / 2 / 3600:.1f} hours."
    shares = ", ".join(f"{seconds / 60:.0f} on {name}" for name, seconds in sorted(by_machine.items()))
    return f"({shares}.) What all of it takes from nothing on one of them is not measured."
