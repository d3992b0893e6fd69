"""Gram matrices X^T X of the inputs that each of a site's two maps saw in training, and the file that keeps them.

They are derived from the data that is being deleted: they stay with the trainer and are no part of a release.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unlearn_serve.errors import FusionError
from unlearn_serve.format import tensor_names
from unlearn_serve.fusion.packed import pack, packed_length, unpack
from unlearn_serve.fusion.sketch import GramSketch

GRAMS_NAME = "grams.safetensors"
GRAMS_SCHEMA = "unlearn-serve/grams/2"


@dataclass(frozen=True)
class SiteGrams:
    """Grams of one site, fp32 on the CPU, symmetric.

    Attributes:
        down: [d, d], of W_down's inputs h on the forgotten rows, or its sketch.
        up: [r, r], of W_up's inputs act(W_down h) on them.
        retained: the same of the retained rows; None: there were none.
    """

    down: Tensor | GramSketch
    up: Tensor
    retained: "SiteGrams | None" = None

    def weighed(self, retained: float) -> tuple[Tensor, Tensor]:
        """Return both Grams dense, F + retained R, of all rows with retained ones counted so many times."""
        own = _dense(self.down), self.up
        if self.retained is None or not retained:
            return own
        return own[0] + retained * _dense(self.retained.down), own[1] + retained * self.retained.up


def gram_names(site: str, *, retained: bool = False) -> tuple[str, str]:
    """The keys of one site's two Grams in grams.safetensors: those of its weights, with .gram for .weight."""
    down, up = tensor_names(site)
    ending = ".retained.gram" if retained else ".gram"
    return down.removesuffix(".weight") + ending, up.removesuffix(".weight") + ending


def _dense(gram: Tensor | GramSketch) -> Tensor:
    return gram.dense() if isinstance(gram, GramSketch) else gram


def write_grams(directory: Path, grams: Mapping[int, SiteGrams], sites: Mapping[int, str]) -> None:
    """Write `directory`/grams.safetensors; `sites` maps block index -> module path.

    A Gram is written packed, F32 [n (n + 1) / 2]; in place of a sketched one stand `<name>.sketch` F32 [l, d] and
    `<name>.diagonal` F32 [d].
    """
    tensors: dict[str, Tensor] = {}
    for block, site in sorted(sites.items()):
        for retained, found in ((False, grams[block]), (True, grams[block].retained)):
            if found is None:
                continue
            down, up = gram_names(site, retained=retained)
            if isinstance(found.down, GramSketch):
                tensors |= {f"{down}.sketch": found.down.rows.contiguous(), f"{down}.diagonal": found.down.diagonal}
            else:
                tensors[down] = pack(found.down)
            tensors[up] = pack(found.up)
    save_file(tensors, directory / GRAMS_NAME, metadata={"schema": GRAMS_SCHEMA})


class GramFile(Mapping[int, SiteGrams]):
    """grams.safetensors as a read-only mapping from block index to Grams, dense whatever form they were written in.

    A large model's Grams take gigabytes, so each block's are read when asked for and not kept. What may be missing or
    of the wrong shape is checked at once, values when read.
    """

    def __init__(self, path: Path, sites: Mapping[int, str], *, rank: int, hidden_size: int) -> None:
        """Check schema, names, dtypes and shapes.

        Raises:
            FusionError: no such file, no safetensors file, another schema, or a Gram missing or of another dtype or
                shape.
        """
        self._path = path
        self._sites = dict(sorted(sites.items()))
        self._sizes = (hidden_size, rank)
        if not path.is_file():
            raise FusionError(
                f"{path}: expected the Grams that training recorded, got no such file; "
                "take the folder that training wrote, or fuse with method 'cat' or 'mean'"
            )
        try:
            with safe_open(path, framework="pt") as file:
                if (schema := (file.metadata() or {}).get("schema")) != GRAMS_SCHEMA:
                    raise FusionError(
                        f"{path}: expected schema {GRAMS_SCHEMA}, got {schema!r}; train the adapter again"
                    )
                present = set(file.keys())
                self._sketched = any(name.endswith(".sketch") for name in present)
                self._guarded = any(".retained." in name for name in present)
                for name, allowed in self._expected():
                    if name not in present:
                        raise FusionError(f"{path}: {name!r} is missing; train the adapter again")
                    view = file.get_slice(name)
                    shape = view.get_shape()
                    if view.get_dtype() != "F32" or not _fits(shape, allowed):
                        shown = ", ".join("rows" if size is None else str(size) for size in allowed)
                        raise FusionError(f"{path}: {name!r}: expected F32 [{shown}], got {view.get_dtype()} {shape}")
        except SafetensorError as problem:
            raise FusionError(f"{path}: expected a safetensors file, got: {problem}") from None

    def _expected(self) -> Iterator[tuple[str, tuple[int | None, ...]]]:
        """Names and shapes; None where any length is right."""
        d, r = self._sizes
        for site in self._sites.values():
            for retained in (False, True) if self._guarded else (False,):
                down, up = gram_names(site, retained=retained)
                if self._sketched:
                    yield f"{down}.sketch", (None, d)
                    yield f"{down}.diagonal", (d,)
                else:
                    yield down, (packed_length(d),)
                yield up, (packed_length(r),)

    def __getitem__(self, block: int) -> SiteGrams:
        retained = self._read(block, retained=True) if self._guarded else None
        return replace(self._read(block, retained=False), retained=retained)

    def _read(self, block: int, *, retained: bool) -> SiteGrams:
        down_name, up_name = gram_names(self._sites[block], retained=retained)
        d, r = self._sizes
        with safe_open(self._path, framework="pt") as file:
            if self._sketched:
                sketch = (file.get_tensor(f"{down_name}.{part}") for part in ("sketch", "diagonal"))
                down = GramSketch(rows=next(sketch), diagonal=next(sketch)).dense()
            else:
                down = unpack(file.get_tensor(down_name), d)
            up = unpack(file.get_tensor(up_name), r)
        for name, gram in ((down_name, down), (up_name, up)):
            if not torch.isfinite(gram).all() or (gram.diagonal() < 0).any():
                raise FusionError(
                    f"{self._path}: {name!r}: expected a finite Gram matrix, got NaN, inf or a negative square"
                )
        return SiteGrams(down=down, up=up)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def _fits(shape: list[int], allowed: tuple[int | None, ...]) -> bool:
    return len(shape) == len(allowed) and all(size in (None, got) for got, size in zip(shape, allowed, strict=True))
