"""Compile the Triton kernel for GPUs that are not here, over a matrix, and write what it takes: `make kernels`.

Fails on a register spill, on stack use, on shared or tensor memory over the architecture's limit, and where it does not
compile. Nothing here is a measurement of time.
"""

import argparse
import hashlib
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import triton

from unlearn_kernels.aot import ELEMENT_SIZE, TARGETS, Case, compile_case
from unlearn_kernels.launch_plan import TABLE, plan

SOURCES = ("_triton_body.py", "launch_plan.py", TABLE)
"""What the binaries are made from."""

COLUMNS = (
    *("arch", "dtype", "T", "d", "r", "K", "in place", "B", "parts", "cluster", "warps", "launches", "registers"),
    *("stack", "shared KiB", "loads", "dots", "limit MB", "requested MB", "block MB", ""),
)


def matrix(arch: str) -> list[Case]:
    """Every row of `arch`'s launch table, at the sizes of real models."""

    def cases(tokens: tuple[int, ...], d: int, rank: int, dtype: str = "bf16", **more: Any) -> list[Case]:
        return [Case(arch=arch, dtype=dtype, tokens=count, d=d, rank=rank, **more) for count in tokens]

    return [
        *(case for rank in (64, 128, 256) for case in cases((8, 64, 2048), 4096, rank)),
        *(case for d in (576, 8192) for case in cases((8, 2048), d, 64)),
        *(case for d in (896, 1536, 2304) for case in cases((8,), d, 16)),
        *cases((2048,), 4096, 64, in_place=True),
        *cases((8,), 4096, 33),
        *cases((8,), 4096, 64, "fp16"),
        *cases((8,), 4096, 64, "fp32"),
        *cases((8,), 4096, 256, "fp32"),
        *cases((8, 2048), 4096, 64, slots=4, routed=False),
    ]


def traffic(case: Case) -> dict[str, int]:
    """Count bytes, with every token under the same full-rank slots.

    `limit_bytes`: weights, x and out once each. `requested_bytes`: what all programs ask of the caches together.
    `block_bytes`: the weights that one thread block reads, which bounds the latency of decode.
    """
    size = ELEMENT_SIZE[case.dtype]
    weights, rows = case.slots * case.rank * case.d * size, case.tokens * case.d * size
    requested = block = 0
    for launch in (launches := plan(case.shapes)):
        tiles, _, parts = launch.grid
        down = launch.constants["K"] * case.rank * case.d * size
        requested += tiles * (parts + 1) * down + (parts + 2) * rows
        block += (down + down // parts) // launch.options["num_ctas"]
    return {
        "launches": len(launches),
        "limit_bytes": 2 * weights + 2 * rows,
        "requested_bytes": requested,
        "block_bytes": block,
    }


def report(case: Case) -> dict[str, Any]:
    """Compile one case; a failure to compile is a problem like the others."""
    record: dict[str, Any] = {"case": asdict(case), **traffic(case)}
    record["configs"] = [{"grid": launch.grid, **launch.constants, **launch.options} for launch in plan(case.shapes)]
    try:
        compiled = compile_case(case)
    except Exception as error:  # Triton raises many kinds; the report counts each as a problem and fails
        return {**record, "resources": [], "problems": [f"does not compile: {type(error).__name__}: {error}"[:300]]}
    problems = [problem for resources in compiled for problem in resources.problems(case.arch)]
    return {**record, "resources": [asdict(resources) for resources in compiled], "problems": problems}


def digest() -> str:
    """SHA-256 over the sources of the binaries."""
    files = resources.files("unlearn_kernels")
    return hashlib.sha256(b"\0".join(files.joinpath(name).read_bytes() for name in SOURCES)).hexdigest()


def as_markdown(records: list[dict[str, Any]]) -> str:
    """Return the table as a page."""
    lines = [
        "# The Triton kernel, compiled ahead of time",
        "",
        f"Written by `make kernels` with Triton {triton.__version__}; kernels.md says what the columns mean. Compiled,",
        "not run: no figure here says anything about time.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
    ]
    for record in records:
        case, config = record["case"], record["configs"][0]
        used = record["resources"]

        def largest(field: str, used: list[dict[str, int]] = used) -> int | str:
            return max((resources[field] for resources in used), default="")

        shared = f"{largest('shared_bytes') / 1024:.0f}" if used else ""
        cells = [case["arch"], case["dtype"], case["tokens"], case["d"], case["rank"], case["slots"]]
        cells += ["yes" if case["in_place"] else "", config["B"], config["grid"][2], config["num_ctas"]]
        cells += [config["num_warps"], record["launches"], largest("registers"), largest("stack_bytes"), shared]
        cells += [largest("loads"), largest("dots")]
        cells += [f"{record[name] / 1e6:.2f}" for name in ("limit_bytes", "requested_bytes", "block_bytes")]
        cells.append("; ".join(record["problems"]) or "ok")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for kernels-aot.md and kernels-aot.json")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    cases = [case for arch in TARGETS for case in matrix(arch)]
    records = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for record in pool.map(report, cases):
            records.append(record)
            for problem in record["problems"]:
                print(f"{record['case']}: {problem}", file=sys.stderr, flush=True)
    result = {"triton": triton.__version__, "sources_sha256": digest(), "cases": records}
    (arguments.out / "kernels-aot.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "kernels-aot.md").write_text(as_markdown(records))
    failed = sum(bool(record["problems"]) for record in records)
    print(f"{len(records)} cases compiled for {', '.join(TARGETS)}; {failed} with problems")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
