"""A Gram matrix in a few rows: Frequent Directions, with the diagonal kept exactly.

Liberty, "Simple and Deterministic Matrix Sketching", KDD 2013; Ghashami et al., SIAM J. Comput. 2016. Of G = X^T X
[d, d] are kept B [l, d] and the diagonal [d]; G itself is never formed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GramSketch:
    """What stands for a Gram G [d, d].

    Attributes:
        rows: B, fp32 [l, d]. 0 <= G - B^T B <= |X - X_k|_F^2 / (l - k) I for every k < l, X_k its best rank-k fit.
        diagonal: that of G, fp32 [d].
    """

    rows: Tensor
    diagonal: Tensor

    def dense(self) -> Tensor:
        """Return B^T B with G's own diagonal, fp32 [d, d]: positive semidefinite as G is."""
        gram = self.rows.T @ self.rows
        gram.diagonal().copy_(self.diagonal)
        return gram


class GramSketcher:
    """Sums x x^T over rows as they come, in memory of 2 l rows."""

    def __init__(self, rows: int, size: int, device: torch.device | None = None) -> None:
        """`rows`: l, those that are kept; `size`: d."""
        self._kept = min(rows, size)
        self._buffer = torch.zeros(2 * self._kept, size, device=device)
        self._filled = 0
        self._diagonal = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, x: Tensor) -> None:
        """Add rows [n, d], any float dtype."""
        x = x.float()
        self._diagonal += x.double().square().sum(0)
        while len(x):
            taken = x[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            x = x[len(taken) :]
            if self._filled == len(self._buffer):
                self._shrink()

    def result(self) -> GramSketch:
        """Return the sketch, on the CPU, of the rows so far."""
        if self._filled > self._kept:
            self._shrink()
        return GramSketch(rows=self._buffer[: self._kept].cpu().clone(), diagonal=self._diagonal.float().cpu())

    def _shrink(self) -> None:
        """Rotate the buffer to its principal directions, take the (l + 1)-th square off each, keep l rows."""
        buffer = self._buffer.double()
        squares, basis = torch.linalg.eigh(buffer @ buffer.T)  # ascending
        squares, basis = squares.flip(0), basis.flip(1)
        kept = self._kept
        left = (squares[:kept] - squares[kept]).clamp_min(0)
        scale = torch.where(squares[:kept] > 0, left / squares[:kept].clamp_min(1e-300), 0).sqrt()
        self._buffer.zero_()
        self._buffer[:kept] = (scale[:, None] * (basis[:, :kept].T @ buffer)).float()
        self._filled = kept
