"""The paper's own tables, out of the result files alone; empty where their stages have not run."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper.checks import ablated_share
from benchmarks.paper.experiments.variations import MISLABELLED
from benchmarks.paper.page import published
from benchmarks.paper.page.grid import TITLES, Result, grid, spread
from benchmarks.paper.sizes import METHODS
from benchmarks.paper.summary import result, seeds


def table(results: Path, task: str) -> str:
    original = result(results, f"{task}/original")
    if original is None:
        return ""
    shares = list(original["forget"])
    tables = []
    for share in shares:
        rows = [("original", [{**original["forget"][share], "accounting": original["accounting"]}])]
        rows += [(name, found) for name in METHODS if (found := seeds(results, f"{task}/forget{share}", name))]
        body = [
            (
                TITLES[name],
                *_judged(found),
                spread([one["lm_loss"] for one in found], "{:.2f}"),
                spread([one["accounting"]["seconds"] for one in found], "{:.0f}"),
                _published(task, name, share),
            )
            for name, found in rows
        ]
        head = ("", "test", "retained", "forgot", "LM loss", "seconds", "published")
        tables.append(f"**{share} %**\n\n{grid(head, body)}")
    return "\n\n".join(tables)


def _judged(found: Sequence[Result]) -> list[str]:
    return [_column(found, name) for name in ("test", "retained", "forgot")]


def _column(found: Sequence[Result], column: str) -> str:
    if "accuracy" in found[0][column]:
        return spread([100 * one[column]["accuracy"] for one in found], "{:.1f}")
    return "/".join(
        f"{100 * statistics.fmean(one[column][name] for one in found):.1f}" for name in ("rouge1", "rouge2", "rougeL")
    )


def _published(task: str, method: str, share: str) -> str:
    if task == "imdb":
        row = published.IMDB.get(method, {}).get(share)
        return "" if row is None else " / ".join("-" if value is None else f"{value:g}" for value in row)
    found = published.SAMSUM.get(method, {}).get(share)
    return "" if found is None else " , ".join("-" if not value else str(value) for value in found)


def ablation(results: Path) -> str:
    share = ablated_share(results)
    if share is None:
        return ""
    folders = {name: f"imdb/forget{share}" if name == "eul" else "imdb/ablation" for name in published.ABLATION}
    rows = [(name, found) for name, folder in folders.items() if (found := seeds(results, folder, name))]
    return grid(
        ("", "test", "retained", "forgot", "LM loss", "published"),
        [
            (
                TITLES[name],
                *_judged(found),
                spread([one["lm_loss"] for one in found], "{:.2f}"),
                " / ".join(f"{value:g}" for value in published.ABLATION[name]),
            )
            for name, found in rows
        ],
    )


def mislabelled(results: Path) -> str:
    original = result(results, "imdb/mislabelled/original")
    if original is None:
        return ""
    rows = [("original", list(original["forget"].values()))]
    rows += [(name, found) for name in MISLABELLED if (found := seeds(results, "imdb/mislabelled", name))]
    return grid(
        ("", "test", "retained", "forgot", "published"),
        [
            (
                TITLES[name],
                *_judged(found),
                " / ".join(f"{value:g}" for value in published.MISLABELLED.get(name, ())),
            )
            for name, found in rows
        ],
    )


def membership(results: Path) -> str:
    original = result(results, "imdb/original")
    if original is None:
        return ""
    share = list(original["forget"])[-1]
    rows = [("original", [original["forget"][share]])]
    rows += [(name, found) for name in METHODS if (found := seeds(results, f"imdb/forget{share}", name))]
    attacks = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")
    return f"IMDB, {share} % forgotten.\n\n" + grid(
        ("", "loss", "zlib", "Min-K", "Min-K++", "published (accuracy)"),
        [
            (
                TITLES[name],
                *(spread([one["measures"][attack]["value"] for one in found], "{:.3f}") for attack in attacks),
                f"{published.MEMBERSHIP[name]:g}" if name in published.MEMBERSHIP else "",
            )
            for name, found in rows
        ],
    )
