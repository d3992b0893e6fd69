"""The running sums of a RegMean fusion, and the file that keeps them beside a fused adapter.

A further adapter needs these sums and nothing else of the adapters before it. Like Grams they are derived from the data
that is being deleted: they stay with the trainer and are no part of a release.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unlearn_serve.errors import FusionError
from unlearn_serve.format import FileName, Manifest, tensor_names
from unlearn_serve.fusion.grams import SiteGrams
from unlearn_serve.fusion.packed import packed_length
from unlearn_serve.fusion.regmean import MapSums, RegMean

SUMS_NAME = "fusion_sums.safetensors"
SUMS_SCHEMA = "unlearn-serve/fusion-sums/2"
_HEADER = "unlearn_serve"
_WEIGHTS: FileName = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class SiteSums:
    """The sums of one site's maps: `down` with d inputs and r outputs, `up` with r inputs and d outputs."""

    down: MapSums
    up: MapSums

    @classmethod
    def of(cls, w_down: Tensor, w_up: Tensor, grams: SiteGrams, options: RegMean) -> "SiteSums":
        """The sums of one adapter at one site: W_down [r, d], W_up [d, r]."""
        down, up = grams.weighed(options.retained)
        return cls(down=MapSums.of(w_down, down, options), up=MapSums.of(w_up, up, options))

    @property
    def rank(self) -> int:
        """The bottleneck width r."""
        return self.up.right.shape[0]

    def padded(self, rank: int) -> "SiteSums":
        """The sums of the same adapters with bottlenecks widened to `rank` by units that do nothing (W = 0)."""
        if rank == self.rank:
            return self
        d = self.up.right.shape[1]
        return SiteSums(down=self.down.padded(inputs=d, outputs=rank), up=self.up.padded(inputs=rank, outputs=d))

    def __add__(self, other: "SiteSums") -> "SiteSums":
        """The sums of both, in the wider one's rank."""
        rank = max(self.rank, other.rank)
        one, two = self.padded(rank), other.padded(rank)
        return SiteSums(down=one.down + two.down, up=one.up + two.up)


@dataclass(frozen=True, kw_only=True)
class SumsHeader:
    """Which adapters the sums are of."""

    options: RegMean
    """What they were made with; further adapters must be added with the same."""

    deletion_ids: tuple[str, ...]
    """What the fused adapter covers, sorted."""

    parents: tuple[str, ...]
    """SHA-256 of each trained adapter's adapter_model.safetensors, sorted: none is ever added twice."""

    adapter: str
    """SHA-256 of the fused adapter's own adapter_model.safetensors, beside which the file lies."""


def sums_names(site: str) -> tuple[str, str, str, str]:
    """The keys of one site's sums: left and right of W_down, left and right of W_up."""
    down, up = (name.removesuffix(".weight") for name in tensor_names(site))
    return f"{down}.left", f"{down}.right", f"{up}.left", f"{up}.right"


def write_sums(directory: Path, sums: Mapping[int, SiteSums], sites: Mapping[int, str], header: SumsHeader) -> None:
    """Write `directory`/fusion_sums.safetensors: F64, lefts packed; the header is JSON in the file's metadata."""
    tensors: dict[str, Tensor] = {}
    for block, site in sorted(sites.items()):
        one = sums[block]
        values = (one.down.left, one.down.right, one.up.left, one.up.right)
        tensors |= dict(zip(sums_names(site), (value.contiguous() for value in values), strict=True))
    described = json.dumps({"schema": SUMS_SCHEMA, **asdict(header)}, sort_keys=True)
    save_file(tensors, directory / SUMS_NAME, metadata={_HEADER: described})  # one key: their order is not fixed


class SumsFile(Mapping[int, SiteSums]):
    """fusion_sums.safetensors as a read-only mapping from block index to sums, each read when asked for.

    Attributes:
        header: which adapters the sums are of.
    """

    header: SumsHeader

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Check the file against the `manifest` of the fused adapter that it lies beside.

        Raises:
            FusionError: no safetensors file, another schema or header, sums of another adapter, or a tensor missing,
                of another dtype or shape.
        """
        self._path = path
        self._sites = dict(sorted(manifest.adapter.sites.items()))
        d, r = manifest.base_model.hidden_size, manifest.adapter.rank
        shapes = ([packed_length(d)], [d, r], [packed_length(r)], [r, d])
        try:
            with safe_open(path, framework="pt") as file:
                self.header = _read_header(path, file.metadata() or {})
                present = set(file.keys())
                for site in self._sites.values():
                    for name, shape in zip(sums_names(site), shapes, strict=True):
                        if name not in present:
                            raise FusionError(f"{path}: {name!r} is missing; fuse the trained adapters again")
                        view = file.get_slice(name)
                        if (view.get_dtype(), view.get_shape()) != ("F64", shape):
                            got = f"{view.get_dtype()} {view.get_shape()}"
                            raise FusionError(f"{path}: {name!r}: expected F64 {shape}, got {got}")
        except SafetensorError as problem:
            raise FusionError(f"{path}: expected a safetensors file, got: {problem}") from None
        if self.header.adapter != manifest.files[_WEIGHTS].sha256 or self.header.deletion_ids != manifest.deletion_ids:
            raise FusionError(f"{path}: expected the sums of the adapter beside it, got another's; fuse again")

    def __getitem__(self, block: int) -> SiteSums:
        names = sums_names(self._sites[block])
        with safe_open(self._path, framework="pt") as file:
            values = [file.get_tensor(name) for name in names]
        for name, value in zip(names, values, strict=True):
            if not torch.isfinite(value).all():
                raise FusionError(f"{self._path}: {name!r}: expected finite sums, got NaN or inf; fuse again")
        left, right, up_left, up_right = values
        return SiteSums(down=MapSums(left=left, right=right), up=MapSums(left=up_left, right=up_right))

    def __iter__(self) -> Iterator[int]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def _read_header(path: Path, metadata: Mapping[str, str]) -> SumsHeader:
    try:
        found: dict[str, Any] = json.loads(metadata[_HEADER])
        schema = found.pop("schema")
        if schema != SUMS_SCHEMA:
            raise FusionError(f"{path}: expected schema {SUMS_SCHEMA}, got {schema}; fuse the trained adapters again")
        return SumsHeader(
            options=RegMean(**found.pop("options")),
            deletion_ids=tuple(map(str, found.pop("deletion_ids"))),
            parents=tuple(map(str, found.pop("parents"))),
            adapter=str(found.pop("adapter")),
            **found,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as problem:
        raise FusionError(f"{path}: expected the header of running sums, got: {problem!r}") from None
