"""The Triton kernel against the fp32 reference: under Triton's interpreter here, and on a GPU where there is one."""

import itertools
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.triton_cases import Case, check

pytest.importorskip("triton")

PATTERNS = ("none", "one", "distinct", "skewed", "zipf", "runs")
TOKENS = (0, 1, 2, 3, 7, 16, 33, 133)
WIDE, NARROW = (576, 896, 1536, 2304, 4096, 8192), (576, 896)
RANKS = (1, 3, 7, 8, 16, 24, 33, 64, 100, 128, 255, 256)
DTYPES = ("bf16", "fp32", "fp16")


@pytest.fixture(scope="module", params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Case], None]]:
    """`check`, in a child process whose triton interprets ("cpu") or compiles ("cuda")."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1" if request.param == "cpu" else "0")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:

            def in_child(case: Case) -> None:
                pool.submit(check, replace(case, device=request.param)).result()

            yield in_child


def covering() -> list[Case]:
    """Every pattern with every number of tokens; sizes, ranks, dtypes and ways of routing cycle beside them."""
    cases = []
    for i, (tokens, pattern) in enumerate(itertools.product(TOKENS, PATTERNS)):
        sizes = WIDE if tokens <= 7 else NARROW
        cases.append(
            Case(
                tokens=tokens,
                pattern=pattern,
                d=sizes[(i + i // 6) % len(sizes)],
                rank=RANKS[(5 * i + i // 12) % len(RANKS)],
                dtype=DTYPES[(i + i // 6) % 3],
                routed=i % 4 == 1,
                int64=i % 3 == 1,
                seed=i,
            )
        )
    return cases


@pytest.mark.parametrize("case", covering(), ids=lambda c: f"{c.tokens}-{c.pattern}-{c.d}-r{c.rank}-{c.dtype}")
def test_agrees_with_reference(run: Callable[[Case], None], case: Case) -> None:
    run(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("slots", "rank"), [(2, 24), (3, 40), (5, 3), (3, 256), (9, 32)])
def test_sets_of_slots(run: Callable[[Case], None], slots: int, rank: int, dtype: str) -> None:
    """(3, 256) and (9, 32) need several launches: a second one must add to the first and read the original x."""
    run(Case(tokens=7, d=72, rank=rank, dtype=dtype, slots_a_token=slots, int64=True))


# Odd on purpose: columns that do not divide d, more parts than chunks, fewer programs than groups.
CONFIGS = [
    {"tokens": 16, "groups": 1, "parts": 1, "down_columns": 64, "up_columns": 32, "warps": 4, "stages": 3},
    {"tokens": 16, "groups": 3, "parts": 5, "down_columns": 32, "up_columns": 16, "warps": 4, "stages": 2},
    {"tokens": 64, "groups": 2, "parts": 9, "down_columns": 128, "up_columns": 64, "warps": 8, "stages": 1},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"B{c['tokens']}-G{c['groups']}-P{c['parts']}")
@pytest.mark.parametrize("pattern", ["distinct", "zipf"])
def test_any_launch_config_gives_the_same(run: Callable[[Case], None], config: dict[str, int], pattern: str) -> None:
    """The tuner may write any of these: a part or a group that no program takes would leave NaN in the output."""
    run(Case(tokens=37, d=200, rank=24, dtype="bf16", pattern=pattern, config=tuple({**config, "ctas": 1}.items())))


@settings(max_examples=10)
@given(
    case=st.builds(
        Case,
        tokens=st.integers(0, 12),
        d=st.integers(1, 12).map(lambda n: 8 * n),
        rank=st.integers(1, 64),
        dtype=st.sampled_from(DTYPES),
        slots_a_token=st.integers(1, 3),
        int64=st.booleans(),
        seed=st.integers(0, 99),
    )
)
def test_any_shape(run: Callable[[Case], None], case: Case) -> None:
    run(case)


def test_package_imports_without_triton() -> None:
    """Machines with no usable Triton have the op all the same."""
    code = (
        "import sys; sys.modules['triton'] = None; import unlearn_kernels; "
        "assert 'unlearn_kernels.triton_launch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
