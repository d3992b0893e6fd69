"""Packed and sketched Grams: what they keep, and what the sketch may lose."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unlearn_serve.fusion import GramSketcher, RegMean, regmean
from unlearn_serve.fusion.packed import pack, packed_length, unpack


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decaying(seed: int, tokens: int, size: int, decay: float) -> Tensor:
    """Rows whose principal directions fall off by `decay` each, as those of hidden states do."""
    basis = torch.linalg.qr(draw(seed + 1, size, size)).Q
    return draw(seed, tokens, size) * decay ** torch.arange(size) @ basis


@given(seed=st.integers(0, 2**16), size=st.integers(1, 9), more=st.integers(0, 3))
def test_packing_keeps_a_symmetric_matrix(seed: int, size: int, more: int) -> None:
    x = draw(seed, 4, size)
    triangle = pack(x.T @ x)
    assert triangle.shape == (packed_length(size),)
    torch.testing.assert_close(unpack(triangle, size), x.T @ x)
    # Zeros at the end of a triangle are rows and columns of zeros.
    grown = unpack(torch.cat([triangle, torch.zeros(packed_length(size + more) - len(triangle))]), size + more)
    assert torch.equal(grown[:size, :size], unpack(triangle, size))
    assert grown[size:].abs().sum() == grown[:, size:].abs().sum() == 0


def test_packed_order_is_that_of_the_documentation() -> None:
    assert pack(torch.tensor([[1, 2, 4], [2, 3, 5], [4, 5, 6]])).tolist() == [1, 2, 3, 4, 5, 6]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    tokens=st.integers(0, 40),
    size=st.integers(1, 12),
    rows=st.integers(1, 12),
    pieces=st.integers(1, 5),
)
def test_sketch_keeps_frequent_directions_promise(seed: int, tokens: int, size: int, rows: int, pieces: int) -> None:
    """0 <= G - B^T B <= |X - X_k|^2 / (l - k) for every k < l, however the rows came in; the diagonal is exact."""
    x = decaying(seed, tokens, size, 0.7)
    sketcher = GramSketcher(rows, size)
    for piece in x.tensor_split(pieces):
        sketcher.add(piece)
    sketch = sketcher.result()
    kept = min(rows, size)
    assert sketch.rows.shape == (kept, size)
    gram = (x.T @ x).double()
    scale = gram.trace().item() + 1e-6
    gap = torch.linalg.eigvalsh(gram - (sketch.rows.T @ sketch.rows).double())
    assert gap.min() >= -1e-5 * scale
    squares = torch.linalg.svdvals(x.double()).square()
    for k in range(kept):
        assert gap.max() <= squares[k:].sum() / (kept - k) + 1e-5 * scale
    torch.testing.assert_close(sketch.diagonal.double(), gram.diagonal(), rtol=1e-5, atol=1e-6)
    dense = sketch.dense()
    torch.testing.assert_close(dense.diagonal(), sketch.diagonal)
    assert torch.linalg.eigvalsh(dense.double()).min() >= -1e-5 * scale


def test_a_sketch_of_few_directions_is_exact() -> None:
    x = draw(0, 100, 3) @ draw(1, 3, 16)
    sketcher = GramSketcher(4, 16)
    sketcher.add(x)
    torch.testing.assert_close(sketcher.result().dense(), x.T @ x, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("options", [RegMean(), RegMean(scaling="none", off_diagonal=1.0)])
def test_fusion_with_sketches_nears_the_exact_one_as_rows_grow(options: RegMean) -> None:
    """The error on the maps' own inputs, against the exact fusion; figures on a real model: docs/fusion.md."""
    size, out = 48, 8
    xs = [decaying(seed, 400, size, 0.85) for seed in (0, 10)]
    ws = [draw(20 + i, out, size) for i in range(2)]
    exact = regmean(ws, [x.T @ x for x in xs], options)
    errors = []
    for rows in (4, 12, 24, 48):
        grams = []
        for x in xs:
            sketcher = GramSketcher(rows, size)
            sketcher.add(x)
            grams.append(sketcher.result().dense())
        w = regmean(ws, grams, options)
        errors.append(max(((x.double() @ (w - exact).T).norm() / (x.double() @ exact.T).norm()).item() for x in xs))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3, "as many rows as directions: only fp32 rounding is left"
    assert errors[0] > 10 * errors[-1]
