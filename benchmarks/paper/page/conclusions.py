"""What it costs, and whether the shape agrees: tables out of the result files alone."""

from pathlib import Path

from benchmarks.paper.claims import CLAIMS
from benchmarks.paper.page import published
from benchmarks.paper.page.grid import Result, grid
from benchmarks.paper.page.notes import NOTES, REMARKS
from benchmarks.paper.stages import read_result
from benchmarks.paper.summary import result


def cost(results: Path, summary: Result) -> str:
    step = read_result(results, "step")
    theirs = {f"imdb{share}": f"{ratio:g}" for share, ratio in published.SPEEDUP.items()}
    rows = [(where, f"{ratio:.1f}", theirs.get(where, "")) for where, ratio in summary["speedups"].items()]
    if (first := summary["speedup_of_first_request"]) is not None:
        at = next(n for n, (where, *_) in enumerate(rows) if where == "tofu1")
        ratio = rows[at][1]
        rows[at : at + 1] = [
            ("tofu1, a model's first request", f"{first:.1f}", ""),
            ("tofu1, any later one (`--frozen-cache`)", ratio, ""),
        ]
    parts = [grid(("request", "re-training over EUL-bounded", "published (EUL)"), rows)] if rows else []
    if step is not None:
        found, rounds = step["result"], step["config"]["rounds"]
        ratio = found["step_speedup"]
        parts.append(
            f"A training step takes {found['product_seconds']:.2f} s, the naive one {found['naive_seconds']:.2f} s: "
            f"**{ratio['median']:.2f} times** as long (median of {rounds} rounds; least {ratio['min']:.2f}, most "
            f"{ratio['max']:.2f}). What is computed once before, and the first step, take "
            f"{found['once_seconds']:.1f} s."
        )
    if (measured := result(results, "precision")) is not None:
        fit, frozen = (measured[what] for what in ("fit", "frozen"))
        parts.append(
            f"{measured['tokens']} tokens of TOFU: full fine-tuning takes {fit['fp32']:.1f} s in fp32 and "
            f"{fit['bf16']:.1f} s under bf16 autocast, asking a frozen model {frozen['fp32']:.1f} s in fp32 and "
            f"{frozen['bf16']:.1f} s in bf16."
        )
    return "\n\n".join(parts)


def claims(results: Path) -> str:
    rows = []
    for claim in CLAIMS:
        found = claim.check(results)
        verdict = "not measured" if found is None else "agrees" if found[0] else "**does not**"
        remark = "" if found is None else (REMARKS if found[0] else NOTES).get(claim.name, "")
        rows.append((claim.text, claim.published, "" if found is None else found[1], verdict, remark))
    return grid(("the paper's tables say", "published", "ours", "shape", "why not, or with what reserve"), rows)
