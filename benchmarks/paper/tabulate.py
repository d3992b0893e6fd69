"""The tables of docs/results.md, each out of the result files alone; empty where its stages have not run."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper import published
from benchmarks.paper.claims import CLAIMS
from benchmarks.paper.notes import NOTES
from benchmarks.paper.sizes import METHODS
from benchmarks.paper.stages import read_result
from benchmarks.paper.summary import result, seeds

Result = Mapping[str, Any]

TITLES = {
    "original": "Original",
    "retrain": "Re-train",
    "retrained": "Re-train",
    "finetune": "Fine-tune",
    "sisa": "SISA",
    "reverse-gradient": "Reverse gradient",
    "mend-like": "MEND-like",
    "lora": "LoRA",
    "eul": "EUL",
    "eul-bounded": "EUL-bounded",
    "without-kl": "without KL",
    "without-task": "without TASK",
    "without-lm": "without LM",
    "regmean": "RegMean",
    "regmean-published": "RegMean as published",
    "cat": "`cat`",
    "mean": "mean",
    "trained-on": "one layer trained on",
}
SHOWN = ("forget.probability", "forget.extraction_strength", "retain.probability")


def tofu(results: Path) -> str:
    original = result(results, "tofu/original")
    if original is None:
        return ""
    tables = []
    for count, before in original["measures"].items():
        rows = [("Original", [before], [original["accounting"]["seconds"]])]
        retrained = result(results, f"tofu/retrained{count}")
        methods = {name: seeds(results, f"tofu/forget{count}", name) for name in METHODS}
        if retrained is None or not any(methods.values()):
            continue
        rows.append(("Re-train", [retrained["measures"]], [retrained["accounting"]["seconds"]]))
        rows += [
            (TITLES[name], [one["measures"] for one in found], [one["accounting"]["seconds"] for one in found])
            for name, found in methods.items()
            if found
        ]
        shown = {
            "forgot: probability": "forget.probability",
            "extraction strength": "forget.extraction_strength",
            "ROUGE-L": "forget.rouge_l",
            "forget quality": "forget_quality",
            "privacy leak": "privacy_leak",
            "retained: probability": "retain.probability",
            "ROUGE-L ": "retain.rouge_l",
            "utility": "model_utility",
        }
        # The leak of the two models that are no method is against the re-trained one too.
        area = retrained["measures"]["mia_min_k"]["value"]
        body = [
            (
                title,
                *(_cell(title, found, measure, area) for measure in shown.values()),
                _spread(seconds, "{:.0f}"),
            )
            for title, found, seconds in rows
        ]
        tables.append(f"**{count} author{'s' if int(count) > 1 else ''}**\n\n" + grid(("", *shown, "seconds"), body))
    return "\n\n".join(tables)


def _cell(title: str, found: Sequence[Result], measure: str, area: float) -> str:
    if measure == "privacy_leak" and title in ("Original", "Re-train"):
        return f"{(area - found[0]['mia_min_k']['value']) / (1 - area):.3f}" if area < 1 else ""
    values = [one[measure]["value"] for one in found if measure in one]
    if title == "Re-train" and measure.startswith("forget.") and found[0][measure]["low"] is not None:
        one = found[0][measure]
        return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
    return _spread(values, "{:.2g}" if measure == "forget_quality" else "{:.3f}")


def sequence(summary: Result) -> str:
    found = summary["sequence"]
    if not found:
        return ""
    steps = list(next(iter(found.values())))
    order = list(found)

    def table(shown: Callable[[Result], str]) -> str:
        return grid(
            ("requests", *steps), [(TITLES[name], *(shown(found[name][step]) for step in steps)) for name in order]
        )

    return "\n\n".join(
        [
            "Requests forgotten: every level at most the re-trained model's upper end (in brackets, within its ends):",
            table(lambda one: f"{one['forgotten']} ({one['within_interval']})"),
            "Probability and extraction strength of what was to be forgotten:",
            table(lambda one: f"{one['forget_probability']:.3f} / {one['forget_extraction_strength']:.3f}"),
            "Retained over original (probability of the rows that stay):",
            table(lambda one: f"{one['retained_over_original']:.3f}"),
            "Seconds of the step:",
            table(lambda one: f"{one['seconds']:.0f}"),
            "Published, IMDB: accuracy on test rows / on what was to be forgotten:",
            grid(
                ("requests", "1", "2", "3"),
                [
                    (TITLES[name], *(f"{test} / {forgot}" for test, forgot in values))
                    for name, values in published.SEQUENCE.items()
                ],
            ),
        ]
    )


def gram_study(results: Path) -> str:
    found = result(results, "tofu/gram-study")
    if found is None:
        return ""
    return grid(
        (f"{found['requests']} requests", "forgotten", "probability", "extraction strength", "retained over original"),
        [
            (
                name,
                f"{one['forgotten']} ({one['within_interval']})",
                *(f"{one[f'forget_{level}']:.3f}" for level in ("probability", "extraction_strength")),
                f"{one['retained_over_original']:.3f}",
            )
            for name, one in found["ways"].items()
        ],
    )


def robustness(results: Path) -> str:
    parts = []
    for name, title in {"paraphrased": "asked", "quantised": "base", "relearned": "rows seen again"}.items():
        found = result(results, f"tofu/robustness/{name}")
        if found is None:
            continue
        cases = list(next(iter(found.values())))
        parts.append(
            grid(
                (title, *cases),
                [
                    (
                        TITLES[model],
                        *(" / ".join(f"{by_case[case][level]['value']:.3f}" for level in SHOWN) for case in cases),
                    )
                    for model, by_case in found.items()
                ],
            )
        )
    return "\n\n".join(parts)


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
                *(_judged(found, column) for column in ("test", "retained", "forgot")),
                _spread([one["lm_loss"] for one in found], "{:.2f}"),
                _spread([one["accounting"]["seconds"] for one in found], "{:.0f}"),
                _published(task, name, share),
            )
            for name, found in rows
        ]
        head = ("", "test", "retained", "forgot", "LM loss", "seconds", "published")
        tables.append(f"**{share} %**\n\n{grid(head, body)}")
    return "\n\n".join(tables)


def _judged(found: Sequence[Result], column: str) -> str:
    if "accuracy" in found[0][column]:
        return _spread([100 * one[column]["accuracy"] for one in found], "{:.1f}")
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
    found = {name: result(results, f"imdb/ablation/{name}") for name in list(published.ABLATION)[1:]}
    made = next((record for name in found if (record := read_result(results, f"imdb/ablation/{name}"))), None)
    if made is None:
        return ""
    share = f"{100 * made['config']['share']:g}"
    rows: list[tuple[str, Sequence[Result]]] = [("eul", seeds(results, f"imdb/forget{share}", "eul"))]
    rows += [(name, [one]) for name, one in found.items() if one is not None]
    return grid(
        ("", "test", "retained", "forgot", "LM loss", "published"),
        [
            (
                TITLES[name],
                *(_judged(one, column) for column in ("test", "retained", "forgot")),
                _spread([each["lm_loss"] for each in one], "{:.2f}"),
                " / ".join(f"{value:g}" for value in published.ABLATION[name]),
            )
            for name, one in rows
            if one
        ],
    )


def mislabelled(results: Path) -> str:
    original = result(results, "imdb/mislabelled/original")
    if original is None:
        return ""
    rows = [("original", next(iter(original["forget"].values())))]
    rows += [
        (name, one)
        for name in ("retrain", "eul", "eul-bounded")
        if (one := result(results, f"imdb/mislabelled/{name}")) is not None
    ]
    return grid(
        ("", "test", "retained", "forgot", "published"),
        [
            (
                TITLES[name],
                *(_judged([one], column) for column in ("test", "retained", "forgot")),
                " / ".join(f"{value:g}" for value in published.MISLABELLED.get(name, ())),
            )
            for name, one in rows
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
                *(_spread([one["measures"][attack]["value"] for one in found], "{:.3f}") for attack in attacks),
                f"{published.MEMBERSHIP[name]:g}" if name in published.MEMBERSHIP else "",
            )
            for name, found in rows
        ],
    )


def cost(results: Path, summary: Result) -> str:
    step = result(results, "step")
    theirs = {f"imdb{share}": f"{ratio:g}" for share, ratio in published.SPEEDUP.items()}
    rows = [(where, f"{ratio:.1f}", theirs.get(where, "")) for where, ratio in summary["speedups"].items()]
    parts = [grid(("request", "re-training over EUL-bounded", "published (EUL)"), rows)] if rows else []
    if step is not None:
        ratio = step["step_speedup"]
        parts.append(
            f"A training step takes {step['product_seconds']:.2f} s, the naive one {step['naive_seconds']:.2f} s: "
            f"**{ratio['median']:.2f} times** as long (median of {_plural(results)}; least {ratio['min']:.2f}, most "
            f"{ratio['max']:.2f}). What is computed once before, and the first step, take {step['once_seconds']:.1f} s."
        )
    if (measured := result(results, "precision")) is not None:
        fit, frozen = (measured[what] for what in ("fit", "frozen"))
        parts.append(
            f"{measured['tokens']} tokens of TOFU: full fine-tuning takes {fit['fp32']:.1f} s in fp32 and "
            f"{fit['bf16']:.1f} s under bf16 autocast, asking a frozen model {frozen['fp32']:.1f} s in fp32 and "
            f"{frozen['bf16']:.1f} s in bf16."
        )
    return "\n\n".join(parts)


def _plural(results: Path) -> str:
    found = json.loads((results / "step.json").read_text())
    return f"{found['config']['rounds']} rounds"


def claims(results: Path) -> str:
    rows = []
    for claim in CLAIMS:
        found = claim.check(results)
        verdict = "not measured" if found is None else "agrees" if found[0] else "**does not**"
        why = NOTES.get(claim.name, "") if found is not None and not found[0] else ""
        rows.append((claim.text, claim.published, "" if found is None else found[1], verdict, why))
    return grid(("the paper's tables say", "published", "ours", "shape", "why not"), rows)


def _spread(values: Sequence[float], form: str) -> str:
    """The mean; with least and most where there are several."""
    if not values:
        return ""
    mean = form.format(statistics.fmean(values))
    if len(values) == 1 or form.format(min(values)) == form.format(max(values)):
        return mean
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
