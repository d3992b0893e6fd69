"""RegMean: the linear map closest to several linear maps on the inputs that each of them saw, in closed form.

Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023; used for unlearning layers by
Chen & Yang, EMNLP 2023.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearn_serve.errors import FusionError

OFF_DIAGONAL = 0.9
RIDGE = 1e-4


def regmean(
    weights: Sequence[Tensor],
    grams: Sequence[Tensor],
    shares: Sequence[int],
    *,
    off_diagonal: float = OFF_DIAGONAL,
    ridge: float = RIDGE,
) -> Tensor:
    """Fuse linear maps y = x W^T.

    Semantics: W^T = (sum M_i)^-1 sum M_i W_i^T, which minimises sum_i tr((W - W_i) M_i (W - W_i)^T), with
    M_i = shrink(s_i G_i / mean(diag G_i)) + s_i ridge I, where shrink multiplies the off-diagonal by `off_diagonal`.

    Each Gram is scaled to a mean diagonal of s_i, so that the amount of text behind a map does not decide. The ridge is
    inside the weighted sum: where no map has data the result is their mean, and maps that agree come out as they were.
    Scaling and shrinking are linear, so fusing in steps gives what fusing at once gives (with `scaled_gram`).

    Args:
        weights: W_i [out, in], any floating dtype.
        grams: G_i = X_i^T X_i [in, in].
        shares: s_i >= 1, how many trained adapters each map already stands for.
        off_diagonal: in [0, 1]; 1 trusts the correlations of the inputs, 0 ignores them.
        ridge: > 0, relative to a mean diagonal of 1.

    Returns:
        W [out, in] in fp64. Nothing is mutated.

    Raises:
        FusionError: the sum is not positive definite (a Gram that is none).
    """
    size = weights[0].shape[1]
    left = torch.zeros(size, size, dtype=torch.float64)
    right = torch.zeros(size, weights[0].shape[0], dtype=torch.float64)
    for weight, gram, share in zip(weights, grams, shares, strict=True):
        moment = scaled_gram(gram, share)
        diagonal = moment.diagonal() + share * ridge
        moment = moment * off_diagonal
        moment.diagonal().copy_(diagonal)
        left += moment
        right += moment @ weight.double().T
    factor, failed = torch.linalg.cholesky_ex(left)
    if failed:
        raise FusionError(
            f"the sum of the Grams [{size}, {size}] is not positive definite although ridge is {ridge:g}; "
            "one of them is no Gram matrix, train that adapter again"
        )
    return torch.cholesky_solve(right, factor).T.contiguous()


def scaled_gram(gram: Tensor, share: int) -> Tensor:
    """`gram` in fp64, scaled to a mean diagonal of `share`; a Gram of zeros (the map saw nothing) stays zero."""
    wide = gram.double()
    mean = wide.diagonal().mean()
    return wide * (share / mean) if mean > 0 else wide.clone()
