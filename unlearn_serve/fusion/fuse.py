"""Fuse adapters in memory, site by site: RegMean, cat or mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from unlearn_serve.errors import FusionError
from unlearn_serve.format import AdapterTensors
from unlearn_serve.fusion.grams import SiteGrams
from unlearn_serve.fusion.regmean import RegMean
from unlearn_serve.fusion.sums import SiteSums

Method = Literal["regmean", "cat", "mean"]
METHODS: tuple[Method, ...] = get_args(Method)

MAX_RANK = 1024
"""Largest rank that the adapter format allows."""


@dataclass(frozen=True, kw_only=True)
class Fusible:
    """An adapter as fusion takes it, and as fusion returns it.

    Attributes:
        name: how messages name it.
        tensors: rank, activation and the maps of each block.
        grams: of a trained adapter, by block index; None where they were not kept. Read one block at a time.
        sums: of an adapter that RegMean made, by block index, in place of Grams. Read one block at a time.
        share: how many trained adapters it stands for: 1, or for a fused one the sum over its parents.
    """

    name: str
    tensors: AdapterTensors
    grams: Mapping[int, SiteGrams] | None = None
    sums: Mapping[int, SiteSums] | None = None
    share: int = 1

    def sums_at(self, block: int, options: RegMean) -> SiteSums:
        """The block's running sums: those kept, else those of this adapter alone."""
        if self.sums is not None:
            return self.sums[block]
        assert self.grams is not None
        return SiteSums.of(self.tensors.w_down[block], self.tensors.w_up[block], self.grams[block], options)


def fuse(
    adapters: Sequence[Fusible],
    method: Method = "regmean",
    options: RegMean | None = None,
    *,
    gain: float = 1.0,
    on_site: Callable[[], None] = lambda: None,
) -> Fusible:
    """Combine adapters of one base model into one that covers what all of them cover; no data, no training.

    - regmean: each map of each site is the least-squares compromise on the inputs its parents saw. The rank is the
      largest parent's: narrower ones count as widened by units that do nothing, which changes none of them.
    - cat: W_down stacked along the rank, W_up side by side: exactly the sum of the deltas. Ranks add up, but where all
      share W_down (`TrainArgs.freeze_down`): there W_up is summed.
    - mean: plain mean of the maps, weighted by share. Rank stays.

    Args:
        adapters: one or more, with the same activation and blocks, and for mean the same rank.
        method: one of `METHODS`.
        options: of RegMean; sums that adapters bring must have been made with the same.
        gain: > 0, of RegMean: what the fused W_up is multiplied by. A compromise between many requests falls short of
            each parent on its own rows; the running sums are those of gain 1, whatever it is.
        on_site: called after each site, for progress.

    Returns:
        Weights in the parents' dtype (fp32 where they differ). After regmean the running sums, so that fusing goes on
        from here exactly as if all had been fused at once.

    Raises:
        FusionError: nothing to fuse, adapters that do not fit together, or Grams missing for regmean.
    """
    if method not in METHODS:
        raise FusionError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    options = options or RegMean()
    if not gain > 0 or (gain != 1.0 and method != "regmean"):
        raise FusionError(f"gain: expected a number above 0, and 1 but for regmean, got {gain:g} for {method}")
    if not adapters:
        raise FusionError("expected at least one adapter to fuse, got none")
    shared = _share_down(adapters)
    _check(adapters, method, shared=shared)
    shares = [adapter.share for adapter in adapters]
    dtypes = {weight.dtype for adapter in adapters for weight in adapter.tensors.w_down.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32

    w_down: dict[int, Tensor] = {}
    w_up: dict[int, Tensor] = {}
    sums: dict[int, SiteSums] = {}
    for block in sorted(adapters[0].tensors.w_down):
        if method == "regmean":
            one, *others = (adapter.sums_at(block, options) for adapter in adapters)
            sums[block] = sum(others, one)
            fused_down, fused_up = sums[block].down.solve(), gain * sums[block].up.solve()
        else:
            down = [adapter.tensors.w_down[block] for adapter in adapters]
            up = [adapter.tensors.w_up[block] for adapter in adapters]
            if method == "cat" and shared:
                fused_down, fused_up = down[0], sum(up[1:], up[0])
            elif method == "cat":
                fused_down, fused_up = torch.cat(down, dim=0), torch.cat(up, dim=1)
            else:
                fused_down, fused_up = _mean(down, shares), _mean(up, shares)
        w_down[block], w_up[block] = fused_down.to(dtype), fused_up.to(dtype)
        on_site()
    first = adapters[0].tensors
    rank = w_down[min(w_down)].shape[0]
    return Fusible(
        name=" + ".join(adapter.name for adapter in adapters),
        tensors=AdapterTensors(rank=rank, activation=first.activation, w_down=w_down, w_up=w_up),
        sums=sums or None,
        share=sum(shares),
    )


def _share_down(adapters: Sequence[Fusible]) -> bool:
    first, *others = (adapter.tensors.w_down for adapter in adapters)
    return all(
        block in other and torch.equal(weight, other[block]) for other in others for block, weight in first.items()
    )


def _check(adapters: Sequence[Fusible], method: Method, *, shared: bool) -> None:
    first = adapters[0]
    for other in adapters[1:]:
        where = f"cannot fuse {first.name} and {other.name}"
        one, two = first.tensors, other.tensors
        if one.activation != two.activation:
            raise FusionError(f"{where}: expected one activation, got {one.activation} and {two.activation}")
        if one.w_down.keys() != two.w_down.keys():
            raise FusionError(f"{where}: expected the same blocks, got {sorted(one.w_down)} and {sorted(two.w_down)}")
        if method == "mean" and one.rank != two.rank:
            raise FusionError(
                f"{where}: expected one rank, got {one.rank} and {two.rank}; methods 'regmean' and 'cat' take any ranks"
            )
        if (d := one.w_down[min(one.w_down)].shape[1]) != (e := two.w_down[min(two.w_down)].shape[1]):
            raise FusionError(f"{where}: expected one hidden size, got {d} and {e}")
    if method == "cat" and not shared and (total := sum(adapter.tensors.rank for adapter in adapters)) > MAX_RANK:
        raise FusionError(
            f"cat adds ranks up: expected at most {MAX_RANK} in all, got {total}; fuse with regmean or train anew"
        )
    bare = [adapter.name for adapter in adapters if adapter.grams is None and adapter.sums is None]
    if method == "regmean" and bare:
        raise FusionError(f"{bare[0]}: regmean needs the adapter's Grams, got none; fuse with method 'cat' or 'mean'")


def _mean(weights: Sequence[Tensor], shares: Sequence[int]) -> Tensor:
    total = sum((weight.double() * share for weight, share in zip(weights, shares, strict=True)), torch.zeros(()))
    return total / sum(shares)
