"""Compiled for GPUs that are not here: does it fit, and is it the code we mean? `make kernels` runs the full matrix."""

import json
from pathlib import Path

import pytest

pytest.importorskip("triton.backends.nvidia")

from benchmarks.kernel_report import digest, matrix, traffic
from unlearn_kernels.aot import SHARED_LIMIT, TARGETS, Case, Resources, compile_case
from unlearn_kernels.launch_plan import LaunchConfig, Shapes, choose, plan, read_table, write_table

ROOT = Path(__file__).parents[2]


def decode(arch: str, **more: object) -> Case:
    return Case(**{"arch": arch, "dtype": "bf16", "tokens": 8, "d": 4096, "rank": 64, **more})  # type: ignore[arg-type]


def compiled(case: Case, config: LaunchConfig | None = None) -> Resources:
    (resources,) = compile_case(case, config)
    return resources


@pytest.mark.parametrize(
    "case",
    [
        decode("sm_80"),
        decode("sm_90"),
        decode("gfx942"),
        decode("sm_90", tokens=2048, rank=256),
        decode("sm_100", tokens=2048, in_place=True),
    ],
    ids=lambda case: f"{case.arch}-{case.tokens}-r{case.rank}",
)
def test_fits_without_spills(case: Case) -> None:
    resources = compiled(case)
    assert resources.problems(case.arch) == []
    assert resources.dots > 0, "bf16 must go through the tensor cores"
    config = plan(case.shapes)[0].options
    assert (resources.cluster_barriers > 0) == (config["num_ctas"] > 1)


def test_w_up_is_read_wide_only_where_the_rank_allows_it() -> None:
    """A hint of divisibility in one branch holds for the whole kernel: an odd rank would read past its columns.

    With a buffer of odd rank no load of W_up may be wide; with an even one, both kinds must be there.
    """
    config = LaunchConfig(tokens=16, groups=1, parts=1, down_columns=32, up_columns=64, ctas=1, warps=4, stages=2)
    even, odd = compiled(decode("sm_80"), config), compiled(decode("sm_80", rank=63), config)
    assert even.narrow_loads == odd.narrow_loads == 32, "64 x 64 elements over 128 threads, one by one"
    assert even.loads > odd.loads, "and once more for ranks that are multiples of 8"


def test_what_does_not_fit_is_reported() -> None:
    too_deep = LaunchConfig(tokens=16, groups=1, parts=1, down_columns=256, up_columns=64, ctas=1, warps=4, stages=4)
    (problem,) = compiled(decode("sm_80"), too_deep).problems("sm_80")
    assert problem.startswith(f"expected at most {SHARED_LIMIT['sm_80']} bytes of shared memory, got ")
    spilled = Resources(
        registers=255, stack_bytes=8, spills=2, shared_bytes=0, tensor_memory_columns=513, loads=1, narrow_loads=0,
        dots=1, cluster_barriers=0,
    )  # fmt: skip
    assert spilled.problems("sm_100") == [
        "expected no spills, got 8 bytes of stack and 2 spills",
        "expected at most 512 columns of tensor memory, got 513",
    ]


def test_committed_report_is_of_this_kernel_and_clean() -> None:
    report = json.loads((ROOT / "docs" / "kernels-aot.json").read_text())
    assert report["sources_sha256"] == digest(), "the kernel or its launch table changed: run `make kernels`"
    assert len(report["cases"]) == sum(len(matrix(arch)) for arch in TARGETS)
    assert [record["problems"] for record in report["cases"] if record["problems"]] == []


def test_matrix_compiles_every_row_of_the_launch_table() -> None:
    """A row that is never compiled could spill, or not compile at all."""
    used = {
        (arch, choose(case.shapes, int(launch.constants["J"])))
        for arch in TARGETS
        for case in matrix(arch)
        for launch in plan(case.shapes)
    }
    assert {(row.arch, row.config) for row in read_table()} <= used


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize("arch", TARGETS)
def test_every_shape_has_a_row(arch: str, element_size: int, in_place: bool) -> None:
    for tokens in (1, 16, 17, 128, 129, 100_000):
        for rank in (1, 16, 17, 64, 65, 255, 256):
            for slots in (1, 2, 9):
                shapes = Shapes(
                    tokens=tokens, d=8192, rank=rank, slots=slots, element_size=element_size, arch=arch, x_stride=8192,
                    out_stride=8192, slot_strides=(slots, 1), routed=False, in_place=in_place,
                )  # fmt: skip
                launches = plan(shapes)
                assert sum(int(launch.constants["K"]) for launch in launches) == slots
                for launch in launches:
                    assert launch.grid[0] * launch.constants["B"] >= tokens
                    assert not in_place or (launch.grid[2], launch.options["num_ctas"]) == (1, 1)


def test_one_slot_is_one_launch_and_bytes_are_counted_against_the_limit() -> None:
    assert traffic(decode("sm_90")) == {
        "launches": 1,
        "limit_bytes": 2 * 64 * 4096 * 2 + 2 * 8 * 4096 * 2,
        "requested_bytes": 3 * 64 * 4096 * 2 + 4 * 8 * 4096 * 2,  # two parts: W_down and x are asked for twice
        "block_bytes": (64 * 4096 * 2 + 32 * 4096 * 2) // 4,
    }


def test_a_table_is_written_as_it_is_read(tmp_path: Path) -> None:
    write_table(read_table(), tmp_path / "table.json")
    assert read_table(tmp_path / "table.json") == read_table()
