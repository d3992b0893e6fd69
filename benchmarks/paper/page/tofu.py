"""The tables of the experiments on TOFU, out of the result files alone; empty where their stages have not run."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.paper.experiments.studies import BLOCKS, GUARDS, KEPT_WORDS
from benchmarks.paper.measuring import SHOWN
from benchmarks.paper.page import published
from benchmarks.paper.page.grid import TITLES, Result, grid, spread
from benchmarks.paper.sizes import METHODS
from benchmarks.paper.summary import result, seeds


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
            "exact match": "retain.exact_match",
            "ROUGE-L ": "retain.rouge_l",
            "utility": "model_utility",
        }
        # The leak of the two models that are no method is against the re-trained one too.
        area = retrained["measures"]["mia_min_k"]["value"]
        body = [
            (
                title,
                *(_cell(title, found, measure, area) for measure in shown.values()),
                spread(seconds, "{:.0f}"),
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
    return spread(values, "{:.2g}" if measure == "forget_quality" else "{:.3f}")


def blocks_study(results: Path, choices: Iterable[str]) -> str:
    return _study(results, BLOCKS, "layers in", choices, {})


def guards_study(results: Path, choices: Iterable[int]) -> str:
    return _study(results, GUARDS, "rows read", map(str, choices), {KEPT_WORDS: "exact match"})


def _study(results: Path, folder: str, what: str, choices: Iterable[str], beside: dict[str, str]) -> str:
    found = {name: one for name in choices if (one := result(results, f"{folder}/{name}")) is not None}
    if not found:
        return ""
    columns = ("forgot: probability", "extraction strength", "retained: probability", *beside.values())
    return grid(
        (what, *columns, "steps", "seconds", ""),
        [
            (
                name.replace("-", " "),
                *(f"{one['measures'][measure]['value']:.3f}" for measure in (*SHOWN, *beside)),
                f"{one['steps']}",
                f"{one['seconds']:.0f}",
                "" if one["reached"] else "out of steps",
            )
            for name, one in found.items()
        ],
    )


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
