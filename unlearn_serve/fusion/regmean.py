"""RegMean: the linear map closest to several linear maps on the inputs that each of them saw, in closed form.

Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023; used for unlearning layers by
Chen & Yang, EMNLP 2023: W^T = (sum G_i)^-1 sum G_i W_i^T with G_i = X_i^T X_i. Everything about map i enters in the two
sums, so a further map needs only them and not the maps before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from unlearn_serve.errors import FusionError
from unlearn_serve.fusion.packed import pack, packed_length, unpack

Scaling = Literal["unit", "none"]
_FLOOR = 1e-12
"""What a Gram of zeros counts as in the unit of the ridge where Grams are not scaled: next to no say, but a say."""


@dataclass(frozen=True, kw_only=True)
class RegMean:
    """How Grams become the weight M [n, n] of their map: G = F + retained R, M = shrink(s G) + ridge t I.

    F is the Gram of the rows that the map was to forget, R of those that were to stay as they are.

    scaling "unit": s = 1 / tr G, t = 1 / n. scaling "none": s = 1, t = tr G / n.
    """

    scaling: Scaling = "unit"
    """unit: each Gram is scaled to a trace of 1, so that neither the amount of text behind a map nor its adapter's rank
    decides. none: as published, a map that saw twice the text counts twice."""

    off_diagonal: float = 0.9
    """Factor of the Gram's elements off the diagonal, in [0, 1]: 1 trusts the correlations of the inputs, 0 ignores
    them."""

    ridge: float = 1e-4
    """> 0, in units of the Gram's mean diagonal. Inside the weighted sum: where no map has data the result is their
    mean, and maps that agree come out as they were."""

    retained: float = 1.0
    """How much a retained row counts beside a forgotten one, at least 0. 1: as published. Retained rows outnumber the
    forgotten ones, are much the same for every request, and ask each time for the mean of all maps: the more requests,
    the more the result is that mean everywhere."""

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            FusionError: see the fields.
        """
        if not self.retained >= 0:
            raise FusionError(f"retained: expected at least 0, got {self.retained:g}")
        if self.scaling not in get_args(Scaling):
            raise FusionError(f"scaling: expected one of {', '.join(get_args(Scaling))}, got {self.scaling!r}")
        if not 0 <= self.off_diagonal <= 1 or not self.ridge > 0:
            raise FusionError(
                "expected off_diagonal in [0, 1] and ridge above 0, "
                f"got off_diagonal {self.off_diagonal:g} and ridge {self.ridge:g}"
            )

    def moment(self, gram: Tensor) -> Tensor:
        """Return M [n, n] in fp64 of a Gram [n, n] of any floating dtype; one of zeros (no input) becomes ridge I."""
        wide = gram.double()
        trace, size = wide.diagonal().sum(), len(wide)
        if self.scaling == "unit":
            scale, unit = (1.0 / trace if trace > 0 else torch.ones(())), torch.tensor(1.0 / size)
        else:
            scale, unit = torch.ones(()), (trace / size).clamp_min(_FLOOR)
        moment = wide * (scale * self.off_diagonal)
        moment.diagonal().copy_(wide.diagonal() * scale + self.ridge * unit)
        return moment


PUBLISHED = RegMean(scaling="none", off_diagonal=1.0, ridge=1e-9)
"""The closed form as published; its ridge only keeps the inverse defined."""


@dataclass(frozen=True, kw_only=True)
class MapSums:
    """All that fusion has to know of the maps y = x W_i^T [in, out] so far.

    Attributes:
        left: sum of M_i, fp64, packed [in (in + 1) / 2].
        right: sum of M_i W_i^T, fp64 [in, out].
    """

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, weight: Tensor, gram: Tensor, options: RegMean) -> "MapSums":
        """The sums of one map: weight W [out, in], gram [in, in], any floating dtypes."""
        moment = options.moment(gram)
        return cls(left=pack(moment), right=moment @ weight.double().T)

    def padded(self, *, inputs: int, outputs: int) -> "MapSums":
        """The sums of the same maps with inputs and outputs of zeros appended: no map has a say on them."""
        grown = torch.zeros(packed_length(inputs), dtype=torch.float64)
        grown[: len(self.left)] = self.left
        right = torch.zeros(inputs, outputs, dtype=torch.float64)
        right[: self.right.shape[0], : self.right.shape[1]] = self.right
        return MapSums(left=grown, right=right)

    def __add__(self, other: "MapSums") -> "MapSums":
        return MapSums(left=self.left + other.left, right=self.right + other.right)

    def solve(self) -> Tensor:
        """Semantics: W^T = left^-1 right, which minimises sum_i tr((W - W_i) M_i (W - W_i)^T); W fp64 [out, in].

        Raises:
            FusionError: the sum is not positive definite (a Gram that is none).
        """
        size = self.right.shape[0]
        factor, failed = torch.linalg.cholesky_ex(unpack(self.left, size))
        if failed:
            raise FusionError(
                f"the sum of the Grams [{size}, {size}] is not positive definite in spite of the ridge; "
                "one of them is no Gram matrix, train that adapter again"
            )
        return torch.cholesky_solve(self.right, factor).T.contiguous()


def regmean(weights: Sequence[Tensor], grams: Sequence[Tensor], options: RegMean | None = None) -> Tensor:
    """Fuse linear maps W_i [out, in] with Grams [in, in] into W fp64 [out, in]; nothing is mutated.

    Raises:
        FusionError: see `MapSums.solve`.
    """
    one, *others = (MapSums.of(weight, gram, options or RegMean()) for weight, gram in zip(weights, grams, strict=True))
    return sum(others, one).solve()
