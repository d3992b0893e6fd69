"""RegMean against its definition: least squares over the inputs that each map saw."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unlearn_serve.errors import FusionError
from unlearn_serve.fusion import regmean
from unlearn_serve.fusion.regmean import scaled_gram

# fp64 throughout; the solve loses up to the condition number, at most about 1e4 (1 / ridge), of 1e-16.
EXACT = {"rtol": 0.0, "atol": 1e-9}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(x: Tensor) -> Tensor:
    return x.T @ x


def test_by_hand() -> None:
    """Two maps 2 -> 1. G1 = diag(3, 1) scales to diag(1.5, 0.5), G2 = diag(0, 4) to diag(0, 2); no ridge to speak of.

    First input: (1.5 * 2 + 0 * 10) / 1.5 = 2. Second: (0.5 * 4 + 2 * 9) / 2.5 = 8.
    """
    w = regmean(
        [torch.tensor([[2.0, 4.0]]), torch.tensor([[10.0, 9.0]])],
        [torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([0.0, 4.0]))],
        [1, 1],
        ridge=1e-12,
    )
    torch.testing.assert_close(w, torch.tensor([[2.0, 8.0]], dtype=torch.float64), **EXACT)


def test_off_diagonal_by_hand() -> None:
    """G1 = [[1, .8], [.8, 1]] shrinks to [[1, .4], [.4, 1]] at 0.5; G2 = I; W1 = (1, 0), W2 = (0, 0).

    (M1 + I) w = M1 (1, 0) = (1, .4): [[2, .4], [.4, 2]] w = (1, .4) gives w = (1.84, -.4 + .8) / 3.84.
    """
    w = regmean(
        [torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)],
        [torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64), torch.eye(2)],
        [1, 1],
        off_diagonal=0.5,
        ridge=1e-12,
    )
    torch.testing.assert_close(w, torch.tensor([[1.84 / 3.84, 0.4 / 3.84]], dtype=torch.float64), **EXACT)


@pytest.mark.parametrize(("tokens", "size", "out"), [(50, 7, 3), (2, 7, 3), (1, 1, 1)])
def test_one_map_comes_out_as_it_went_in(tokens: int, size: int, out: int) -> None:
    """Even where its data spans less than the space: the ridge pulls to the maps' mean, not to zero."""
    w = draw(0, out, size)
    torch.testing.assert_close(regmean([w], [gram(draw(1, tokens, size))], [1]), w, **EXACT)


def test_equal_maps_come_out_equal_whatever_their_grams() -> None:
    w = draw(0, 3, 7)
    grams = [gram(draw(seed, 4, 7) * 10.0**seed) for seed in (1, 2, 3)]
    torch.testing.assert_close(regmean([w] * 3, grams, [1, 1, 2]), w, **EXACT)


def test_orthogonal_data_gives_each_map_on_its_own_data() -> None:
    """Orientation and no crosstalk: on x_i the fused map does what map i does. A transposed Gram or W fails here."""
    basis = torch.linalg.qr(draw(0, 8, 8)).Q
    xs = [draw(1, 40, 3) @ basis[:, :3].T, draw(2, 40, 3) @ basis[:, 3:6].T]
    ws = [draw(3, 5, 8), draw(4, 5, 8)]
    w = regmean(ws, [gram(x) for x in xs], [1, 1], off_diagonal=1.0, ridge=1e-8)
    for x, own in zip(xs, ws, strict=True):
        # The ridge leaks about ridge / (smallest scaled eigenvalue) of the other map: 1e-8 to 1e-7.
        torch.testing.assert_close(x @ w.T, x @ own.T, rtol=0.0, atol=1e-5)
    outside = basis[:, 6:].T
    torch.testing.assert_close(outside @ w.T, outside @ (sum(ws) / 2).T, rtol=0.0, atol=1e-5)


def test_minimises_the_stated_objective() -> None:
    """The objective's gradient, by autograd, is zero at the closed form."""
    xs = [draw(1, 30, 6), draw(2, 30, 6)]
    ws = [draw(3, 4, 6), draw(4, 4, 6)]
    grams = [scaled_gram(gram(x), 1) for x in xs]
    w = regmean(ws, grams, [1, 1], off_diagonal=1.0, ridge=1e-10).requires_grad_()
    loss = sum(torch.trace((w - own) @ g @ (w - own).T) for own, g in zip(ws, grams, strict=True))
    (gradient,) = torch.autograd.grad(loss, w)
    assert gradient.abs().max() < 1e-8


def test_amount_of_data_does_not_decide() -> None:
    ws = [draw(3, 4, 6), draw(4, 4, 6)]
    one, two = gram(draw(1, 30, 6)), gram(draw(2, 30, 6))
    torch.testing.assert_close(regmean(ws, [one, 1e6 * two], [1, 1]), regmean(ws, [one, two], [1, 1]), **EXACT)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), off_diagonal=st.floats(0, 1), ridge=st.floats(1e-6, 1.0))
def test_fusing_in_steps_is_fusing_at_once(seed: int, off_diagonal: float, ridge: float) -> None:
    options = {"off_diagonal": off_diagonal, "ridge": ridge}
    ws = [draw(seed + i, 3, 5) for i in range(3)]
    grams = [gram(draw(seed + 10 + i, 4, 5)) * 3.0**i for i in range(3)]
    at_once = regmean(ws, grams, [1, 1, 1], **options)
    first = regmean(ws[:2], grams[:2], [1, 1], **options)
    total = scaled_gram(grams[0], 1) + scaled_gram(grams[1], 1)
    torch.testing.assert_close(regmean([first, ws[2]], [total, grams[2]], [2, 1], **options), at_once, **EXACT)


def test_gram_of_zeros_has_next_to_no_say() -> None:
    """A ReLU bottleneck that never fired on its data leaves a Gram of zeros."""
    ws = [draw(0, 3, 4), draw(1, 3, 4)]
    w = regmean(ws, [torch.zeros(4, 4), gram(draw(2, 50, 4))], [1, 1], ridge=1e-9)
    torch.testing.assert_close(w, ws[1], rtol=0.0, atol=1e-6)


def test_inputs_are_not_mutated() -> None:
    ws, grams = [draw(0, 3, 4)], [gram(draw(1, 9, 4))]
    kept = [tensor.clone() for tensor in (*ws, *grams)]
    regmean(ws, grams, [1])
    assert all(torch.equal(a, b) for a, b in zip(kept, (*ws, *grams), strict=True))


def test_no_gram_matrix_is_refused() -> None:
    indefinite = torch.tensor([[1.0, 5.0], [5.0, 1.0]])
    with pytest.raises(FusionError, match=r"the sum of the Grams \[2, 2\] is not positive definite"):
        regmean([torch.ones(1, 2)], [indefinite], [1])
