from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import Tensor

from unlearn_kernels import ACTIVATIONS, activate
from unlearn_serve.errors import FusionError
from unlearn_serve.format import AdapterTensors
from unlearn_serve.fusion import METHODS, Fusible, RegMean, SiteGrams, fuse

D = 12


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adapter(
    seed: int,
    *,
    rank: int = 4,
    activation: str = "silu",
    blocks: tuple[int, ...] = (1, 3),
    inputs: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    d: int = D,
) -> Fusible:
    """A random adapter with the Grams of `inputs` [tokens, d] (random ones by default)."""
    x = draw(seed + 500, 50, d) if inputs is None else inputs
    w_down = {block: draw(seed * 10 + block, rank, d).to(dtype) for block in blocks}
    w_up = {block: draw(seed * 10 + block + 5, d, rank).to(dtype) for block in blocks}
    grams = {}
    for block in blocks:
        z = activate(x @ w_down[block].float().T, activation)
        grams[block] = SiteGrams(down=x.T @ x, up=z.T @ z)
    tensors = AdapterTensors(rank=rank, activation=activation, w_down=w_down, w_up=w_up)
    return Fusible(name=f"adapter {seed}", tensors=tensors, grams=grams)


def delta(fusible: Fusible, block: int, h: Tensor) -> Tensor:
    t = fusible.tensors
    return activate(h @ t.w_down[block].T, t.activation) @ t.w_up[block].T


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("ranks", [(4,), (4, 4), (1, 7, 3)])
def test_cat_is_exactly_the_sum_of_the_deltas(activation: str, ranks: tuple[int, ...]) -> None:
    parents = [adapter(i, rank=rank, activation=activation) for i, rank in enumerate(ranks)]
    fused = fuse(parents, "cat")
    assert fused.tensors.rank == sum(ranks)
    assert fused.sums is None
    h = draw(9, 20, D)
    for block in (1, 3):
        total = sum(delta(parent, block, h) for parent in parents)
        # Only the order of fp32 sums differs: 1e-6 of the largest value.
        torch.testing.assert_close(delta(fused, block, h), total, rtol=0, atol=1e-6 * total.abs().max().item())


def test_cat_of_adapters_that_share_w_down_needs_no_more_rank() -> None:
    """As training with freeze_down leaves them: the sum of the deltas is the delta of the summed W_up."""
    first, other = (adapter(seed, rank=1000) for seed in (0, 1))
    parents = [first, replace(other, tensors=replace(other.tensors, w_down=first.tensors.w_down))]
    fused = fuse(parents, "cat")
    assert fused.tensors.rank == 1000
    h = draw(9, 20, D)
    for block in (1, 3):
        total = sum(delta(parent, block, h) for parent in parents)
        torch.testing.assert_close(delta(fused, block, h), total, rtol=0, atol=1e-6 * total.abs().max().item())


def test_gain_multiplies_the_delta_and_is_no_part_of_the_sums() -> None:
    parents = [adapter(seed) for seed in range(3)]
    plain, doubled = fuse(parents), fuse(parents, gain=2.0)
    h = draw(9, 20, D)
    torch.testing.assert_close(delta(doubled, 1, h), 2 * delta(plain, 1, h))
    on = fuse([fuse(parents[:2], gain=2.0), parents[2]])
    torch.testing.assert_close(delta(on, 1, h), delta(plain, 1, h), rtol=1e-4, atol=1e-4)
    with pytest.raises(FusionError, match="gain: expected a number above 0, and 1 but for regmean, got 2 for cat"):
        fuse(parents, "cat", gain=2.0)
    with pytest.raises(FusionError, match="gain: expected a number above 0"):
        fuse(parents, gain=0.0)


@pytest.mark.parametrize("retained", [0.0, 0.25, 1.0])
def test_a_retained_row_counts_as_told(retained: float) -> None:
    """Against least squares on the inputs themselves, each retained one taken sqrt(retained) times."""
    parents, rows = [], []
    for seed in (0, 1):
        forgotten, kept = draw(seed, 30, D), draw(seed + 50, 40, D)
        one = adapter(seed, inputs=forgotten)
        guards = adapter(seed, inputs=kept).grams
        grams = {block: replace(gram, retained=guards[block]) for block, gram in one.grams.items()}
        parents.append(replace(one, grams=grams))
        rows.append(torch.cat([forgotten, retained**0.5 * kept]))
    fused = fuse(parents, options=RegMean(scaling="none", off_diagonal=1.0, ridge=1e-9, retained=retained))
    for block in (1, 3):
        outputs = torch.cat([x @ one.tensors.w_down[block].T for x, one in zip(rows, parents, strict=True)])
        expected = torch.linalg.lstsq(torch.cat(rows).double(), outputs.double()).solution.T.float()
        torch.testing.assert_close(fused.tensors.w_down[block], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_mean_is_the_mean_in_any_order(order: tuple[int, ...]) -> None:
    parents = [adapter(seed) for seed in order]
    fused = fuse(parents, "mean").tensors
    for block in (1, 3):
        for name in ("w_down", "w_up"):
            expected = torch.stack([getattr(parent.tensors, name)[block] for parent in parents]).mean(0)
            torch.testing.assert_close(getattr(fused, name)[block], expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_adapter_stays_itself(method: str, dtype: torch.dtype) -> None:
    parent = adapter(0, dtype=dtype)
    fused = fuse([parent], method).tensors
    for block in (1, 3):
        for got, expected in (
            (fused.w_down[block], parent.tensors.w_down[block]),
            (fused.w_up[block], parent.tensors.w_up[block]),
        ):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_regmean_of_identical_adapters_is_that_adapter(activation: str) -> None:
    parents = [adapter(0, activation=activation)] * 3
    fused = fuse(parents).tensors
    for block in (1, 3):
        torch.testing.assert_close(fused.w_down[block], parents[0].tensors.w_down[block], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fused.w_up[block], parents[0].tensors.w_up[block], rtol=1e-5, atol=1e-5)


def test_regmean_keeps_each_delta_on_its_own_data_where_the_mean_does_not() -> None:
    """Inputs on disjoint coordinates and bottlenecks on disjoint units: each adapter acts on its data as before.

    This fails where W_down's and W_up's Grams are swapped, or a map is solved transposed.
    """
    xs = [torch.zeros(60, D), torch.zeros(60, D)]
    xs[0][:, :5], xs[1][:, 5:10] = draw(1, 60, 5), draw(2, 60, 5)
    parents = []
    for i, x in enumerate(xs):
        plain = adapter(i, inputs=x, activation="relu")
        w_down = {block: w.clone() for block, w in plain.tensors.w_down.items()}
        for w in w_down.values():
            w[2 * (1 - i) : 2 * (1 - i) + 2] = 0.0  # adapter 0 uses units 0 and 1, adapter 1 units 2 and 3
        grams = {}
        for block, w in w_down.items():
            z = activate(x @ w.T, "relu")
            grams[block] = SiteGrams(down=x.T @ x, up=z.T @ z)
        tensors = AdapterTensors(rank=4, activation="relu", w_down=w_down, w_up=plain.tensors.w_up)
        parents.append(Fusible(name=str(i), tensors=tensors, grams=grams))
    fused, mean = fuse(parents, options=RegMean(ridge=1e-8)), fuse(parents, "mean")
    for block in (1, 3):
        for parent, x in zip(parents, xs, strict=True):
            own = delta(parent, block, x)
            torch.testing.assert_close(delta(fused, block, x), own, rtol=0, atol=1e-4)
            assert (delta(mean, block, x) - own).abs().max() > 0.5


@pytest.mark.parametrize("method", ["regmean", "mean"])
@pytest.mark.parametrize("scaling", ["unit", "none"])
def test_fusing_in_steps_is_fusing_at_once(method: str, scaling: str) -> None:
    ranks = (4, 4, 4) if method == "mean" else (4, 2, 7)
    parents = [adapter(seed, rank=rank) for seed, rank in enumerate(ranks)]
    options = RegMean(scaling=scaling)
    at_once = fuse(parents, method, options)
    in_steps = fuse([fuse(parents[:2], method, options), parents[2]], method, options)
    other_way = fuse([fuse(parents[1:][::-1], method, options), parents[0]], method, options)
    assert at_once.share == in_steps.share == 3
    for block in (1, 3):
        for steps in (in_steps, other_way):
            # fp32 weights of one and the same fp64 solution.
            torch.testing.assert_close(steps.tensors.w_down[block], at_once.tensors.w_down[block], rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(steps.tensors.w_up[block], at_once.tensors.w_up[block], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_regmean_of_different_ranks_counts_missing_units_as_idle(activation: str) -> None:
    """The same as with the narrow adapter written out at the wide one's rank, its further units doing nothing."""
    wide, narrow = adapter(0, rank=5, activation=activation), adapter(1, rank=3, activation=activation)
    w_down = {b: torch.cat([w, torch.zeros(2, D)]) for b, w in narrow.tensors.w_down.items()}
    w_up = {b: torch.cat([w, torch.zeros(D, 2)], dim=1) for b, w in narrow.tensors.w_up.items()}
    pad = torch.nn.functional.pad
    grams = {b: SiteGrams(down=one.down, up=pad(one.up, (0, 2, 0, 2))) for b, one in narrow.grams.items()}
    tensors = AdapterTensors(rank=5, activation=activation, w_down=w_down, w_up=w_up)
    written_out = Fusible(name="written out", tensors=tensors, grams=grams)
    h = draw(9, 20, D)
    torch.testing.assert_close(delta(written_out, 1, h), delta(narrow, 1, h))

    options = RegMean(ridge=1e-9)  # of which the idle units of the written out form have a share
    fused, expected = fuse([wide, narrow], options=options), fuse([wide, written_out], options=options)
    assert fused.tensors.rank == 5
    for block in (1, 3):
        torch.testing.assert_close(fused.tensors.w_down[block], expected.tensors.w_down[block], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fused.tensors.w_up[block], expected.tensors.w_up[block], rtol=1e-3, atol=1e-4)
    fused = fuse([wide, narrow])
    mirrored = fuse([narrow, wide])
    for block in (1, 3):
        torch.testing.assert_close(mirrored.tensors.w_up[block], fused.tensors.w_up[block], rtol=1e-6, atol=1e-7)


def test_regmean_of_different_ranks_keeps_each_delta_on_its_own_data() -> None:
    xs = [torch.zeros(60, D), torch.zeros(60, D)]
    xs[0][:, :5], xs[1][:, 5:10] = draw(1, 60, 5), draw(2, 60, 5)
    # Units 0 to 2 of the first act on its data; the second, of rank 5, leaves them alone and uses 3 and 4.
    first, second = adapter(0, rank=3, inputs=xs[0], activation="relu"), adapter(1, rank=5, activation="relu")
    w_down = {block: w.clone() for block, w in second.tensors.w_down.items()}
    grams = {}
    for block, w in w_down.items():
        w[:3] = 0.0
        z = activate(xs[1] @ w.T, "relu")
        grams[block] = SiteGrams(down=xs[1].T @ xs[1], up=z.T @ z)
    tensors = AdapterTensors(rank=5, activation="relu", w_down=w_down, w_up=second.tensors.w_up)
    second = Fusible(name="second", tensors=tensors, grams=grams)
    fused = fuse([first, second], options=RegMean(ridge=1e-8))
    for parent, x in zip((first, second), xs, strict=True):
        torch.testing.assert_close(delta(fused, 1, x), delta(parent, 1, x), rtol=0, atol=1e-4)


def test_two_runs_agree_bit_for_bit() -> None:
    one, two = (fuse([adapter(0), adapter(1)]).tensors for _ in range(2))
    assert all(torch.equal(one.w_down[block], two.w_down[block]) for block in (1, 3))
    assert all(torch.equal(one.w_up[block], two.w_up[block]) for block in (1, 3))


def test_dtype_is_the_parents_or_fp32_where_they_differ() -> None:
    half, full = adapter(0, dtype=torch.bfloat16), adapter(1)
    assert fuse([half, half]).tensors.w_up[1].dtype == torch.bfloat16
    assert {fuse([half, full], method).tensors.w_down[1].dtype for method in METHODS} == {torch.float32}


def test_progress_is_told_of_each_site() -> None:
    calls: list[int] = []
    fuse([adapter(0), adapter(1)], on_site=lambda: calls.append(1))
    assert len(calls) == 2


def bare(seed: int) -> Fusible:
    return Fusible(name=f"bare {seed}", tensors=adapter(seed).tensors)


def test_mean_goes_without_grams() -> None:
    assert fuse([bare(0), adapter(1)], "mean").sums is None


@pytest.mark.parametrize(
    ("parents", "method", "message"),
    [
        ([], "regmean", "expected at least one adapter to fuse, got none"),
        ([adapter(0)], "sum", "method: expected one of regmean, cat, mean, got 'sum'"),
        ([adapter(0), adapter(1, activation="relu")], "cat", "expected one activation, got silu and relu"),
        ([adapter(0), adapter(1, blocks=(1,))], "cat", r"expected the same blocks, got \[1, 3\] and \[1\]"),
        (
            [adapter(0), adapter(1, rank=2)],
            "mean",
            "cannot fuse adapter 0 and adapter 1: expected one rank, got 4 and 2",
        ),
        ([adapter(0), adapter(1, d=8)], "cat", "expected one hidden size, got 12 and 8"),
        ([adapter(0), bare(1)], "regmean", "bare 1: regmean needs the adapter's Grams, got none; fuse with method"),
        (
            [adapter(0, rank=600), adapter(1, rank=425)],
            "cat",
            "cat adds ranks up: expected at most 1024 in all, got 1025",
        ),
    ],
)
def test_refusals(parents: list[Fusible], method: str, message: str) -> None:
    with pytest.raises(FusionError, match=message):
        fuse(parents, method)
