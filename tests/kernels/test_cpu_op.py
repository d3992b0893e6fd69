"""The C++ op: that it serves, that it is right on every shape it treats specially, that routing is read at run time."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_kernels import apply_unlearning, apply_unlearning_, apply_unlearning_reference

pytestmark = pytest.mark.usefixtures("cpp_op")

# Relative to the largest |y|. bf16: h is rounded before the second product, so that y may be rounded to the neighbour
# of the reference's, which is 2^-7 away at most; fp32: summation order, and exp and erf to a few 1e-7.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3}
LARGE = 128
"""Tokens of one slot, many chunks of them."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def buffers(slots: int, rank: int, d: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Ranks from `rank` down, every activation; NaN past a slot's rank."""
    generator = torch.Generator().manual_seed(slots + rank + d)
    ranks = torch.tensor([max(rank - 5 * slot, 0) for slot in range(slots)], dtype=torch.int32)
    codes = torch.arange(slots, dtype=torch.int32) % 4
    w_down = torch.randn(slots, rank, d, generator=generator) / d**0.5
    w_up = torch.randn(slots, d, rank, generator=generator) / rank**0.5
    for slot, used in enumerate(ranks.tolist()):
        w_down[slot, used:] = w_up[slot, :, used:] = float("nan")
    return w_down.to(dtype), w_up.to(dtype), ranks, codes


def routing(pattern: str, tokens: int, slots: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    match pattern:
        case "none":
            return torch.full((tokens,), -1)
        case "one":
            return torch.full((tokens,), slots - 2)
        case "distinct":
            return torch.arange(tokens) % slots
        case "skewed":
            return torch.where(torch.rand(tokens, generator=generator) < 0.9, 2, -1)
        case "zipf":
            weights = 1 / torch.arange(1, slots + 2, dtype=torch.float32)
            return torch.multinomial(weights, max(tokens, 1), replacement=True, generator=generator)[:tokens] - 1
    raise AssertionError(pattern)


def assert_agrees(x: torch.Tensor, *rest: torch.Tensor) -> None:
    expected = apply_unlearning_reference(x, *rest)
    with threads(1):
        got = apply_unlearning(x, *rest)
    assert not got.isnan().any(), "read past a slot's rank"
    scale = max(float(expected.abs().max()), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[x.dtype] * scale)
    in_place = x.clone()
    with threads(1):
        apply_unlearning_(in_place, *rest)
    assert torch.equal(in_place, got)
    with threads(2):
        torch.testing.assert_close(apply_unlearning(x, *rest), expected, rtol=0, atol=TOLERANCE[x.dtype] * scale)


def dot_calls() -> int:
    return int(torch.ops.unlearn_kernels.dot_calls())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("rank", "d"),
    [(17, 8), (33, 24), (1, 64), (64, 576), (24, 896), (16, 1536), (40, 2304), (8, 4096), (5, 8192), (256, 64)],
)
@pytest.mark.parametrize("pattern", ["none", "one", "distinct", "skewed", "zipf"])
def test_agrees_with_reference(pattern: str, rank: int, d: int, dtype: torch.dtype) -> None:
    weights = buffers(8, rank, d, dtype)
    for tokens in (0, 1, 2, 3, 5, 6, 7, 16, 33, 133):  # a chunk of each size, and many chunks
        x = torch.randn(tokens, d, generator=torch.Generator().manual_seed(2)).to(dtype)
        slots = routing(pattern, tokens, 8)
        assert_agrees(x, weights[0], weights[1], slots, *weights[2:])


def test_agrees_with_reference_on_a_cpu_without_bf16_products() -> None:
    """Those kernels would never run on the machines that test them."""
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__, "-k", "bfloat16 and zipf or same_bits"],
        env={**os.environ, "UNLEARN_KERNELS_WIDEN_BF16": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout
    assert " passed" in child.stdout
    names = subprocess.run(
        [sys.executable, "-c", "import unlearn_kernels; print(unlearn_kernels.load_cpu_op().description)"],
        env={**os.environ, "UNLEARN_KERNELS_WIDEN_BF16": "1"},
        capture_output=True,
        text=True,
    )
    assert names.stdout.strip() == "C++ op (avx512_bf16_widened, avx512_fp32)"


@given(
    tokens=st.integers(0, 20),
    rank=st.integers(1, 256),
    eighths=st.integers(1, 12),
    sets=st.integers(0, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_any_rank_width_and_set(tokens: int, rank: int, eighths: int, sets: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    w_down, w_up, ranks, codes = buffers(5, rank, 8 * eighths, dtype)
    x = torch.randn(tokens, 8 * eighths, generator=generator).to(dtype)
    shape = (tokens, sets) if sets else (tokens,)
    assert_agrees(x, w_down, w_up, torch.randint(-1, 5, shape, generator=generator), ranks, codes)


@pytest.mark.parametrize("sets", [1, 3, 20])
@pytest.mark.parametrize("tokens", [5, 3 * LARGE])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_sets_of_slots_of_every_size(dtype: torch.dtype, tokens: int, sets: int) -> None:
    """Sets beyond the dot products' size sum in another place."""
    w_down, w_up, ranks, codes = buffers(4, 16, 64, dtype)
    slots = torch.randint(-1, 4, (tokens, sets), generator=torch.Generator().manual_seed(0))
    slots[2] = -1
    x = torch.randn(tokens, 64).to(dtype)
    assert_agrees(x, w_down, w_up, slots, ranks, codes)
    x[2, 3] = float("nan")
    as_bits = torch.int32 if dtype is torch.float32 else torch.int16
    x.view(as_bits)[2, 3] += 1  # a NaN that is not torch's own
    assert torch.equal(apply_unlearning(x, w_down, w_up, slots, ranks, codes).view(as_bits)[2], x.view(as_bits)[2])


@pytest.mark.parametrize("spread", [False, True], ids=["one run", "interleaved"])
def test_large_groups_beside_small_ones(spread: bool) -> None:
    w_down, w_up, ranks, codes = buffers(3, 16, 64, torch.bfloat16)
    slots = torch.cat([torch.full((2 * LARGE,), 1), torch.tensor([-1, 2, 0, 2, -1])])
    if spread:
        slots = slots[torch.randperm(len(slots), generator=torch.Generator().manual_seed(0))]
    x = torch.randn(len(slots), 64).to(torch.bfloat16)
    assert_agrees(x, w_down, w_up, slots, ranks, codes)
    assert torch.equal(apply_unlearning(x, w_down, w_up, slots, ranks, codes)[slots == -1], x[slots == -1])


def test_the_fast_path_is_taken_where_it_should_be() -> None:
    """Every other test would pass on a slow path too."""
    for dtype, tokens, expected in [
        (torch.bfloat16, 1, 1),
        (torch.bfloat16, 16, 1),
        (torch.float32, 3, 1),
        (torch.float16, 3, 0),
        (torch.bfloat16, 8 * LARGE, 1),
    ]:
        w_down, w_up, ranks, codes = buffers(2, 16, 64, dtype)
        before = dot_calls()
        apply_unlearning(torch.ones(tokens, 64, dtype=dtype), w_down, w_up, ranks.new_zeros(tokens), ranks, codes)
        assert dot_calls() - before == expected, (dtype, tokens)


@given(
    tokens=st.integers(1, 2 * LARGE),
    rank=st.integers(1, 80),
    eighths=st.integers(1, 100),
    sets=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_a_row_has_the_same_bits_in_every_batch(
    tokens: int, rank: int, eighths: int, sets: int, dtype: torch.dtype, seed: int
) -> None:
    """Or an answer would depend on what else the server is doing."""
    generator = torch.Generator().manual_seed(seed)
    w_down, w_up, ranks, codes = buffers(5, rank, 8 * eighths, dtype)
    x = torch.randn(tokens, 8 * eighths, generator=generator).to(dtype)
    slots = torch.randint(-1, 5, (tokens, sets) if sets else (tokens,), generator=generator)
    with threads(1):
        alone = [apply_unlearning(x[i : i + 1], w_down, w_up, slots[i : i + 1], ranks, codes) for i in range(tokens)]
    for count in (1, 2):
        with threads(count):
            assert torch.equal(apply_unlearning(x, w_down, w_up, slots, ranks, codes), torch.cat(alone))


def test_a_nan_stays_in_its_row() -> None:
    """Tokens of one slot share tiles: one request's overflow must not reach another's output."""
    w_down, w_up, ranks, codes = buffers(4, 16, 64, torch.bfloat16)
    for code in range(4):
        x = torch.randn(8, 64).to(torch.bfloat16)
        x[1, 7], x[2, 9] = float("nan"), float("inf")
        got = apply_unlearning(x, w_down, w_up, ranks.new_zeros(8), ranks, codes * 0 + code)
        assert got[1].isnan().all()
        assert not got[[0, 3, 4, 5, 6, 7]].isnan().any()


def test_activations_far_from_zero() -> None:
    """The exponential saturates; silu and gelu must not."""
    h = torch.tensor([-1e4, -100.0, -20.0, -5.0, -1e-3, 0.0, 1e-3, 5.0, 20.0, 100.0, 1e4])
    x = torch.zeros(len(h), 8)
    x[:, 0] = h
    w_down, w_up = torch.zeros(1, 1, 8), torch.zeros(1, 8, 1)
    w_down[0, 0, 0] = w_up[0, 1, 0] = 1.0
    one = torch.ones(1, dtype=torch.int32)
    for code, activate in enumerate((lambda v: v, torch.relu, torch.nn.functional.silu, torch.nn.functional.gelu)):
        got = apply_unlearning(x, w_down, w_up, torch.zeros(len(h), dtype=torch.int32), one, one * code)[:, 1]
        torch.testing.assert_close(got, activate(h), rtol=2e-6, atol=2e-6)


def test_strides() -> None:
    """Weights and inputs that are slices of larger tensors, with and without unit rows."""
    w_down, w_up, ranks, codes = buffers(6, 24, 64, torch.bfloat16)
    x = torch.randn(9, 128).to(torch.bfloat16)
    slots = torch.stack([routing("zipf", 9, 3), routing("one", 9, 3)], dim=1)
    for view in (x[:, :64], x[:, ::2]):
        assert_agrees(view, w_down[::2], w_up[::2], slots[:, 0], ranks[::2], codes[::2])
        assert_agrees(view, w_down.mT.contiguous().mT[:3], w_up[:3], slots, ranks[:3], codes[:3])
        written = x.clone()
        same_view = written.as_strided(view.shape, view.stride())
        expected = apply_unlearning(view, w_down, w_up, slots, ranks, codes)
        apply_unlearning_(same_view, w_down, w_up, slots, ranks, codes)
        assert torch.equal(same_view, expected)


def test_compiled_graph_reads_routing_when_it_runs_and_is_not_traced_again() -> None:
    w_down, w_up, ranks, codes = buffers(3, 16, 64, torch.float32)
    routes, slot_of_route = torch.full((8,), -1), torch.tensor([-1, 2], dtype=torch.int32)
    traced = 0

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        nonlocal traced
        traced += 1
        return graph.forward

    compiled = torch.compile(
        lambda x: apply_unlearning(x * 2, w_down, w_up, routes, ranks, codes, slot_of_route), backend=backend
    )
    x = torch.randn(8, 64)
    assert torch.equal(compiled(x), x * 2)
    for write in (lambda: slot_of_route[0].fill_(1), lambda: routes[3].fill_(0), lambda: ranks[1].fill_(3)):
        before = compiled(x)
        write()
        assert not torch.equal(compiled(x), before)
        expected = apply_unlearning_reference(x * 2, w_down, w_up, routes, ranks, codes, slot_of_route)
        torch.testing.assert_close(compiled(x), expected)
    assert traced == 1
