"""RegMean against its definition: least squares over the inputs that each map saw."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unlearn_serve.errors import FusionError
from unlearn_serve.fusion import PUBLISHED, RegMean, regmean
from unlearn_serve.fusion.packed import unpack
from unlearn_serve.fusion.regmean import MapSums

# fp64 throughout; the solve loses up to the condition number, at most about 1e4 (1 / ridge), of 1e-16.
EXACT = {"rtol": 0.0, "atol": 1e-9}
OPTIONS = st.builds(
    RegMean, scaling=st.sampled_from(["unit", "none"]), off_diagonal=st.floats(0, 1), ridge=st.floats(1e-6, 1.0)
)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(x: Tensor) -> Tensor:
    return x.T @ x


def test_by_hand() -> None:
    """Two maps 2 -> 1. G1 = diag(3, 1) scales to diag(.75, .25), G2 = diag(0, 4) to diag(0, 1); no ridge to speak of.

    First input: (.75 * 2 + 0 * 10) / .75 = 2. Second: (.25 * 4 + 1 * 9) / 1.25 = 8.
    Unscaled, as published, the second is (1 * 4 + 4 * 9) / 5 = 8 as well and the first 2.
    """
    ws = [torch.tensor([[2.0, 4.0]]), torch.tensor([[10.0, 9.0]])]
    grams = [torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([0.0, 4.0]))]
    for options in (RegMean(ridge=1e-12), PUBLISHED):
        torch.testing.assert_close(
            regmean(ws, grams, options), torch.tensor([[2.0, 8.0]], dtype=torch.float64), rtol=0, atol=1e-7
        )
    # Ten times the text behind the second map: scaled it changes nothing, as published (1 * 4 + 40 * 9) / 41.
    grams[1] = 10 * grams[1]
    assert regmean(ws, grams, RegMean(ridge=1e-12))[0, 1].item() == pytest.approx(8.0, abs=1e-7)
    assert regmean(ws, grams, PUBLISHED)[0, 1].item() == pytest.approx(364 / 41, abs=1e-6)


def test_off_diagonal_by_hand() -> None:
    """Halves cancel. G1 = [[1, .8], [.8, 1]] shrinks to [[1, .4], [.4, 1]] at 0.5; G2 = I; W1 = (1, 0), W2 = (0, 0).

    (M1 + I) w = M1 (1, 0) = (1, .4): [[2, .4], [.4, 2]] w = (1, .4) gives w = (1.84, -.4 + .8) / 3.84.
    """
    w = regmean(
        [torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)],
        [torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64), torch.eye(2)],
        RegMean(off_diagonal=0.5, ridge=1e-12),
    )
    torch.testing.assert_close(w, torch.tensor([[1.84 / 3.84, 0.4 / 3.84]], dtype=torch.float64), **EXACT)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**16), maps=st.integers(1, 4), tokens=st.integers(1, 9), options=OPTIONS)
def test_is_the_least_squares_solution(seed: int, maps: int, tokens: int, options: RegMean) -> None:
    """By brute force, from the inputs themselves: stacked rows, with what shrinking and ridge add as rows too."""
    size, out = 5, 3
    rows: list[Tensor] = []
    targets: list[Tensor] = []
    ws, grams = [], []
    for i in range(maps):
        x, w = draw(seed + i, tokens, size) * 3.0**i, draw(seed + 50 + i, out, size)
        trace = x.square().sum()
        unit, scaled = (1 / size, x / trace.sqrt()) if options.scaling == "unit" else (trace / size, x)
        # shrink(G) = off_diagonal X^T X + (1 - off_diagonal) diag(X^T X), and the ridge: each a Gram of its own rows
        diagonal = (scaled.square().sum(0) * (1 - options.off_diagonal)).sqrt().diag()
        ridge = (options.ridge * unit) ** 0.5 * torch.eye(size, dtype=torch.float64)
        for part in (options.off_diagonal**0.5 * scaled, diagonal, ridge):
            rows.append(part)
            targets.append(part @ w.T)
        ws.append(w)
        grams.append(gram(x))
    expected = torch.linalg.lstsq(torch.cat(rows), torch.cat(targets), driver="gelsd").solution.T
    torch.testing.assert_close(regmean(ws, grams, options), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [RegMean(), PUBLISHED])
@pytest.mark.parametrize(("tokens", "size", "out"), [(50, 7, 3), (2, 7, 3), (1, 1, 1)])
def test_one_map_comes_out_as_it_went_in(tokens: int, size: int, out: int, options: RegMean) -> None:
    """Even where its data spans less than the space: the ridge pulls to the maps' mean, not to zero."""
    w = draw(0, out, size)
    # The published ridge of 1e-9 leaves a condition number of 1e9 or so.
    torch.testing.assert_close(regmean([w], [gram(draw(1, tokens, size))], options), w, rtol=0, atol=1e-5)


def test_equal_maps_come_out_equal_whatever_their_grams() -> None:
    w = draw(0, 3, 7)
    grams = [gram(draw(seed, 4, 7) * 10.0**seed) for seed in (1, 2, 3)]
    torch.testing.assert_close(regmean([w] * 3, grams), w, **EXACT)


@pytest.mark.parametrize("scaling", ["unit", "none"])
def test_orthogonal_data_gives_each_map_on_its_own_data(scaling: str) -> None:
    """Orientation and no crosstalk: on x_i the fused map does what map i does. A transposed Gram or W fails here."""
    basis = torch.linalg.qr(draw(0, 8, 8)).Q
    xs = [draw(1, 40, 3) @ basis[:, :3].T, draw(2, 40, 3) @ basis[:, 3:6].T]
    ws = [draw(3, 5, 8), draw(4, 5, 8)]
    w = regmean(ws, [gram(x) for x in xs], RegMean(scaling=scaling, off_diagonal=1.0, ridge=1e-8))
    for x, own in zip(xs, ws, strict=True):
        # The ridge leaks about ridge / (smallest scaled eigenvalue) of the other map: 1e-8 to 1e-7.
        torch.testing.assert_close(x @ w.T, x @ own.T, rtol=0.0, atol=1e-5)


def test_amount_of_data_does_not_decide_unless_asked_to() -> None:
    ws = [draw(3, 4, 6), draw(4, 4, 6)]
    one, two = gram(draw(1, 30, 6)), gram(draw(2, 30, 6))
    torch.testing.assert_close(regmean(ws, [one, 1e6 * two]), regmean(ws, [one, two]), **EXACT)
    decided = regmean(ws, [one, 1e6 * two], PUBLISHED)
    torch.testing.assert_close(decided, ws[1], rtol=0, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), options=OPTIONS)
def test_order_does_not_matter_and_steps_give_what_once_gives(seed: int, options: RegMean) -> None:
    maps = [MapSums.of(draw(seed + i, 3, 5), gram(draw(seed + 10 + i, 4, 5)) * 3.0**i, options) for i in range(4)]
    at_once = (maps[0] + maps[1] + maps[2] + maps[3]).solve()
    for order in permutations(range(4)):
        a, b, c, d = (maps[i] for i in order)
        # (a + b) + (c + d) is also two fused adapters fused.
        for total in (((a + b) + c) + d, (a + b) + (c + d)):
            torch.testing.assert_close(total.solve(), at_once, rtol=1e-7, atol=1e-8)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), tokens=st.integers(0, 6), options=OPTIONS)
def test_moments_are_symmetric_and_positive_definite(seed: int, tokens: int, options: RegMean) -> None:
    moment = options.moment(gram(draw(seed, tokens, 4)).float())
    assert torch.equal(moment, moment.T)
    assert torch.linalg.eigvalsh(moment).min() > 0
    sums = MapSums.of(draw(seed, 2, 4), gram(draw(seed, tokens, 4)), options)
    left = unpack(sums.left, 4)
    torch.testing.assert_close(left, left.T, rtol=0, atol=0)


@pytest.mark.parametrize("scaling", ["unit", "none"])
def test_gram_of_zeros_has_next_to_no_say(scaling: str) -> None:
    """A ReLU bottleneck that never fired on its data leaves a Gram of zeros."""
    ws = [draw(0, 3, 4), draw(1, 3, 4)]
    nothing = torch.zeros(4, 4)
    w = regmean(ws, [nothing, gram(draw(2, 50, 4))], RegMean(scaling=scaling, ridge=1e-9))
    torch.testing.assert_close(w, ws[1], rtol=0.0, atol=1e-6)
    both = regmean(ws, [nothing, nothing], RegMean(scaling=scaling))
    torch.testing.assert_close(both, (ws[0] + ws[1]) / 2, rtol=0, atol=1e-9)


def test_inputs_are_not_mutated() -> None:
    ws, grams = [draw(0, 3, 4)], [gram(draw(1, 9, 4))]
    kept = [tensor.clone() for tensor in (*ws, *grams)]
    regmean(ws, grams)
    assert all(torch.equal(a, b) for a, b in zip(kept, (*ws, *grams), strict=True))


def test_no_gram_matrix_is_refused() -> None:
    indefinite = torch.tensor([[1.0, 5.0], [5.0, 1.0]])
    with pytest.raises(FusionError, match=r"the sum of the Grams \[2, 2\] is not positive definite"):
        regmean([torch.ones(1, 2)], [indefinite])


@pytest.mark.parametrize("options", [{"off_diagonal": 1.1}, {"off_diagonal": -0.1}, {"ridge": 0.0}, {"ridge": -1.0}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(FusionError, match=r"expected off_diagonal in \[0, 1\] and ridge above 0, got"):
        RegMean(**options)
    with pytest.raises(FusionError, match="scaling: expected one of unit, none, got 'max'"):
        RegMean(scaling="max")
