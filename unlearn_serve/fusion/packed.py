"""Symmetric matrices as their lower triangle, row by row: half the bytes, and more rows only append.

[[a, b, d],
 [b, c, e],   ->   a, b c, d e f
 [d, e, f]]
"""

import torch
from torch import Tensor


def pack(matrix: Tensor) -> Tensor:
    """Return the lower triangle [n (n + 1) / 2] of `matrix` [n, n]; what stands above the diagonal is not read."""
    return matrix[torch.ones(matrix.shape, dtype=torch.bool).tril()]


def unpack(triangle: Tensor, size: int) -> Tensor:
    """Return the symmetric matrix [size, size] whose lower triangle is `triangle`."""
    matrix = torch.zeros(size, size, dtype=triangle.dtype)
    matrix[torch.ones(size, size, dtype=torch.bool).tril()] = triangle
    return matrix + matrix.tril(-1).T


def packed_length(size: int) -> int:
    """Return how many numbers a packed matrix [size, size] has."""
    return size * (size + 1) // 2
