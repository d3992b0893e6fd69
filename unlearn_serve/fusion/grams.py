"""Gram matrices X^T X of the inputs that each of a site's two maps saw in training, and the file that keeps them.

They are derived from the data that is being deleted: they stay with the trainer and are no part of a release.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unlearn_serve.errors import FusionError
from unlearn_serve.format import tensor_names

GRAMS_NAME = "grams.safetensors"


@dataclass(frozen=True)
class SiteGrams:
    """Grams of one site, fp32 on the CPU, symmetric.

    Attributes:
        down: [d, d], of W_down's inputs h.
        up: [r, r], of W_up's inputs act(W_down h).
    """

    down: Tensor
    up: Tensor


def gram_names(site: str) -> tuple[str, str]:
    """The keys of one site's two Grams in grams.safetensors: those of its weights, with .gram for .weight."""
    down, up = tensor_names(site)
    return f"{down.removesuffix('.weight')}.gram", f"{up.removesuffix('.weight')}.gram"


def write_grams(directory: Path, grams: Mapping[int, SiteGrams], sites: Mapping[int, str]) -> None:
    """Write `directory`/grams.safetensors; `sites` maps block index -> module path."""
    tensors: dict[str, Tensor] = {}
    for block, site in sorted(sites.items()):
        down, up = gram_names(site)
        tensors[down] = grams[block].down.contiguous()
        tensors[up] = grams[block].up.contiguous()
    save_file(tensors, directory / GRAMS_NAME)


class GramFile(Mapping[int, SiteGrams]):
    """grams.safetensors as a read-only mapping from block index to Grams.

    A large model's Grams take gigabytes, so each block's are read when asked for and not kept. What may be missing or
    of the wrong shape is checked at once, values when read.
    """

    def __init__(self, path: Path, sites: Mapping[int, str], *, rank: int, hidden_size: int) -> None:
        """Check names, dtypes and shapes.

        Raises:
            FusionError: no such file, no safetensors file, or a Gram missing, of another dtype or shape.
        """
        self._path = path
        self._sites = dict(sorted(sites.items()))
        if not path.is_file():
            raise FusionError(
                f"{path}: expected the Grams that training recorded, got no such file; "
                "take the folder that training wrote, or fuse with method 'cat' or 'mean'"
            )
        try:
            with safe_open(path, framework="pt") as file:
                present = set(file.keys())
                for site in self._sites.values():
                    for name, size in zip(gram_names(site), (hidden_size, rank), strict=True):
                        if name not in present:
                            raise FusionError(f"{path}: {name!r} is missing; train the adapter again")
                        view = file.get_slice(name)
                        got = (view.get_dtype(), view.get_shape())
                        if got != ("F32", [size, size]):
                            raise FusionError(f"{path}: {name!r}: expected F32 [{size}, {size}], got {got[0]} {got[1]}")
        except SafetensorError as problem:
            raise FusionError(f"{path}: expected a safetensors file, got: {problem}") from None

    def __getitem__(self, block: int) -> SiteGrams:
        site = self._sites[block]
        with safe_open(self._path, framework="pt") as file:
            down, up = (file.get_tensor(name) for name in gram_names(site))
        for name, gram in zip(gram_names(site), (down, up), strict=True):
            if not torch.isfinite(gram).all() or (gram.diagonal() < 0).any():
                raise FusionError(
                    f"{self._path}: {name!r}: expected a finite Gram matrix, got NaN, inf or a negative square"
                )
        return SiteGrams(down=down, up=up)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)
