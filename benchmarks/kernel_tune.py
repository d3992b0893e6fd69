"""Choose the launch parameters of this machine's GPU and write them to the launch table.

    python -m benchmarks.kernel_tune          # then `make kernels`, which checks the new rows without a GPU

At each point of (tokens, d, bottleneck), starting from the shipped row, one parameter is changed at a time and kept
where that is faster. A candidate that gives wrong results, spills or does not fit is out. Rows of other architectures
stay as they are, and so do this one's for fp32. Compiling takes most of the time. Not yet run: no GPU was at hand.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from unlearn_kernels.launch_plan import TABLE, LaunchConfig, Shapes, TableRow, choose, read_table, write_table

PACKAGE = Path(__file__).parents[1] / "kernels" / "unlearn_kernels"
TOKENS = (16, 128, None)
D = (1024, 4096, None)
BOTTLENECKS = (64, 128, 256)
LARGEST_TOKENS, LARGEST_D = 4096, 8192
"""What is measured for the rows without a limit."""
CHOICES: dict[str, tuple[int, ...]] = {
    "ctas": (1, 2, 4, 8),
    "parts": (1, 2, 4, 8),
    "tokens": (16, 32, 64, 128),
    "groups": (1, 2, 4, 16),
    "warps": (4, 8),
    "down_columns": (32, 64, 128, 256, 512),
    "up_columns": (16, 32, 64, 128, 256),
    "stages": (2, 3, 4),
}
SWEEPS = 2
Measure = Callable[[LaunchConfig, int, int, int], float | None]
"""(config, tokens, d, bottleneck) -> microseconds, or None where the candidate is out."""


def descend(
    start: LaunchConfig, fields: Iterable[str], measure: Callable[[LaunchConfig], float | None]
) -> tuple[LaunchConfig, float]:
    """Return the best config and its time after SWEEPS rounds of changing one of `fields` at a time.

    Raises:
        RuntimeError: `start` itself is out, so the kernel does not work here.
    """
    times = {start: measure(start)}
    best, best_time = start, times[start]
    if best_time is None:
        raise RuntimeError(f"expected the shipped config to be right and to fit, got neither: {start}")
    for _ in range(SWEEPS):
        for field in fields:
            for value in CHOICES[field]:
                candidate = replace(best, **{field: value})
                if candidate not in times:
                    times[candidate] = measure(candidate)
                time = times[candidate]
                if time is not None and time < best_time:
                    best, best_time = candidate, time
    return best, best_time


def tune(arch: str, measure: Measure) -> list[TableRow]:
    """Return the rows for `arch`: at each point the best config, and behind it the best that may run in place."""
    missing = () if arch in ("sm_90", "sm_100") else ("ctas",)
    rows = []
    for max_tokens, max_d, bottleneck in itertools.product(TOKENS, D, BOTTLENECKS):
        tokens, d = max_tokens or LARGEST_TOKENS, max_d or LARGEST_D

        def here(config: LaunchConfig, at: tuple[int, int, int] = (tokens, d, bottleneck)) -> float | None:
            return measure(config, *at)

        shapes = Shapes(
            tokens=tokens,
            d=d,
            rank=bottleneck,
            slots=1,
            element_size=2,
            arch=arch,
            x_stride=d,
            out_stride=d,
            slot_strides=(1, 0),
            routed=False,
            in_place=True,
        )
        alone, alone_time = descend(
            choose(shapes, bottleneck), [field for field in CHOICES if field not in ("ctas", "parts")], here
        )
        best, best_time = descend(alone, [field for field in CHOICES if field not in missing], here)
        for config in [best, alone] if best_time < alone_time else [alone]:
            rows.append(
                TableRow(
                    arch=arch,
                    element_size=2,
                    max_tokens=max_tokens,
                    max_d=max_d,
                    max_bottleneck=bottleneck,
                    config=config,
                )
            )
    return rows


def measure_on_gpu(config: LaunchConfig, tokens: int, d: int, bottleneck: int) -> float | None:
    """Gate and time one candidate on the GPU, with one slot as in a server that follows one channel."""
    import torch
    from torch import Tensor
    from triton.runtime.errors import OutOfResources, PTXASError

    from benchmarks.kernel_gpu import TOLERANCE
    from benchmarks.kernel_timing import Inputs, largest_error, make_inputs, microseconds
    from unlearn_kernels.aot import Case, compile_case
    from unlearn_kernels.triton_launch import arch_of, launch

    def call(inputs: Inputs) -> Tensor:
        out = torch.full_like(inputs.x, float("nan"))
        launch(**vars(inputs), slot_of_route=None, out=out, config=config)
        return out

    def call_only(inputs: Inputs) -> Tensor:
        out = torch.empty_like(inputs.x)
        launch(**vars(inputs), slot_of_route=None, out=out, config=config)
        return out

    case = Case(arch=arch_of(torch.device("cuda")), dtype="bf16", tokens=tokens, d=d, rank=bottleneck, routed=False)
    try:
        if any(resources.problems(case.arch) for resources in compile_case(case, config)):
            return None
        if largest_error(call, make_inputs(tokens, d, bottleneck, min(4, tokens))) > TOLERANCE:
            return None
        return microseconds(call_only, lambda seed: make_inputs(tokens, d, bottleneck, 1, seed=seed))[0]
    except (OutOfResources, PTXASError):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PACKAGE / TABLE)
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        parser.error("expected a GPU, got none: the table is tuned on the machine that it is for")
    from unlearn_kernels.triton_launch import arch_of

    arch = arch_of(torch.device("cuda"))
    kept = [row for row in read_table() if row.arch != arch or row.element_size == 4]
    write_table((*kept, *tune(arch, measure_on_gpu)), arguments.out)


if __name__ == "__main__":
    main()
