"""Keys and values of tokens already computed: picked by row and put flush right, so that rows can go on from there.

R: rows, S: positions in a cache, T: positions wanted, H: heads, D: head size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


def share(cache: DynamicCache, rows: int) -> DynamicCache:
    """The one row of `cache`, for `rows` rows."""
    return DynamicCache(
        [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values, *_ in cache]
    )


def flush_right(cache: DynamicCache, rows: Tensor, lengths: Tensor, *, skip: Tensor | None = None) -> DynamicCache:
    """A new cache [R, H, T, D]: row i holds the first `lengths[i]` positions of row `rows[i]`, ending at T.

    What lies before them is padding, to be masked (`mask`). The longest of `lengths` is T; `cache` is not changed.

    Args:
        cache: any number of rows.
        rows: [R] int64.
        lengths: [R] int64; may be 0.
        skip: [R] int64, positions of padding before the first one; none if None.
    """
    longest = int(lengths.max())
    positions = (torch.arange(longest, device=lengths.device) - longest + lengths[:, None]).clamp_min(0)  # [R, T]
    if skip is not None:
        positions = positions + skip[:, None]
    return DynamicCache([(_pick(keys, rows, positions), _pick(values, rows, positions)) for keys, values, *_ in cache])


def keep(cache: DynamicCache, rows: Tensor, padding: int) -> DynamicCache:
    """Only `rows` of a cache that is flush right, without the first `padding` positions, which all of them pad."""
    return DynamicCache([(keys[rows, :, padding:], values[rows, :, padding:]) for keys, values, *_ in cache])


def mask(lengths: Tensor, more: int) -> Tensor:
    """Attention mask [R, T + more] for rows flush right in a cache, and `more` new tokens each; 1 where real."""
    longest = int(lengths.max())
    real = torch.arange(longest, device=lengths.device) >= longest - lengths[:, None]
    return torch.nn.functional.pad(real.long(), (0, more), value=1)


def _pick(states: Any, rows: Tensor, positions: Tensor) -> Tensor:
    picked: Tensor = states.transpose(1, 2)[rows[:, None], positions]  # [R, T, H, D]
    return picked.transpose(1, 2)
