"""Fuse adapter directories into another, ordinary adapter directory."""

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file

from unlearn_serve import __version__
from unlearn_serve.errors import BaseModelMismatch, FusionError
from unlearn_serve.format import (
    FileName,
    Manifest,
    Provenance,
    deletion_ids,
    describe_adapter_dir,
    read_adapter_dir,
    require_same_base,
    tensor_names,
    write_manifest,
)
from unlearn_serve.fusion.fuse import Fusible, Method, fuse
from unlearn_serve.fusion.grams import GRAMS_NAME, GramFile
from unlearn_serve.fusion.regmean import RegMean
from unlearn_serve.fusion.sums import SUMS_NAME, SumsFile, SumsHeader, write_sums

logger = logging.getLogger(__name__)

_CONFIG: FileName = "adapter_config.json"
_TENSORS: FileName = "adapter_model.safetensors"
_SHARE = "fused_adapters"


def fuse_dirs(
    dirs: Sequence[Path],
    out: Path,
    method: Method = "regmean",
    options: RegMean | None = None,
    *,
    gain: float = 1.0,
) -> Path:
    """Fuse two or more adapter directories into `out`, which covers the union of their deletion ids.

    The parents are taken in the order of their digests, so the order of `dirs` does not matter: the same parents give
    the same adapter, byte for byte (its manifest tells when and how it was made). `out` appears complete or not at all.

    A folder that RegMean wrote brings its running sums: fusing a further adapter into it gives what fusing all of them
    at once gives, and needs none of the earlier ones.

    Args:
        dirs: what training or an earlier fusion wrote; grams.safetensors, or after a fusion fusion_sums.safetensors,
            must be there for regmean.
        out: a folder that is missing or empty.
        method: see `fuse`.
        options: of RegMean; None: those of the running sums at hand, else the defaults.
        gain: of RegMean, see `fuse`; it may differ from that of an earlier fusion.

    Returns:
        `out`, with adapter_config.json, adapter_model.safetensors, manifest.json and, after regmean,
        fusion_sums.safetensors.

    Raises:
        FusionError: fewer than two, the same one twice (also inside running sums), adapters that do not fit together,
            other options than those of running sums, or `out` is taken.
        FormatError: a directory is not a valid adapter directory.
    """
    if len(dirs) < 2:
        raise FusionError(f"expected at least two adapter folders to fuse, got {len(dirs)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FusionError(f"{out}: expected a folder that is missing or empty, got one in use; choose another")
    parents = {directory: read_adapter_dir(directory) for directory in dirs}
    manifests = {directory: manifest for directory, (manifest, _) in parents.items()}
    _check(manifests, count=len(dirs))
    order = sorted(manifests, key=lambda directory: manifests[directory].digest)
    if method == "mean" and len({manifest.provenance.seed for manifest in manifests.values()}) > 1:
        logger.warning("mean of adapters that started from different seeds: expect little of it; use regmean or cat")
    parts = {d: _part(d, manifests[d]) for d in order} if method == "regmean" else {}
    options = _options(parts, options)
    members = sorted(_members(parts, manifests))
    adapters = [
        Fusible(
            name=str(directory),
            tensors=parents[directory][1],
            grams=part if isinstance(part := parts.get(directory), GramFile) else None,
            sums=part if isinstance(part, SumsFile) else None,
            share=_share(manifests[directory]),
        )
        for directory in order
    ]
    sites = manifests[order[0]].adapter.sites
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"fusing {len(dirs)} adapters ({method})", total=len(sites))
        fused = fuse(adapters, method, options, gain=gain, on_site=lambda: progress.advance(task))
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write_weights(scratch, fused, sites, like=order[0])
        objective: dict[str, float | int | str | bool] = {"fusion": method, _SHARE: fused.share}
        if method == "regmean":
            objective |= asdict(options) | {"gain": gain}
        manifest = _manifest(scratch, fused, [manifests[directory] for directory in order], objective)
        write_manifest(scratch, manifest)
        if fused.sums is not None:
            header = SumsHeader(
                options=options,
                deletion_ids=manifest.deletion_ids,
                parents=tuple(members),
                adapter=manifest.files[_TENSORS].sha256,
            )
            write_sums(scratch, fused.sums, sites, header)
        scratch.chmod(0o755)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _check(manifests: Mapping[Path, Manifest], *, count: int) -> None:
    """Refuse the same adapter twice, and adapters of other base models or with sites elsewhere."""
    by_digest: dict[str, Path] = {}
    for directory, manifest in manifests.items():
        if (twin := by_digest.get(manifest.digest)) is not None:
            raise FusionError(f"{directory} and {twin} are the same adapter; name each once")
        by_digest[manifest.digest] = directory
    if len(manifests) < count:
        raise FusionError("one adapter folder was named twice; name each once")
    (first, reference), *others = manifests.items()
    for directory, manifest in others:
        try:
            require_same_base(reference.base_model, manifest.base_model)
        except BaseModelMismatch as problem:
            raise FusionError(f"cannot fuse {first} and {directory}: {problem}") from None
        if manifest.adapter.sites != reference.adapter.sites:
            one, two = sorted(reference.adapter.sites), sorted(manifest.adapter.sites)
            raise FusionError(
                f"cannot fuse {first} and {directory}: expected the same sites, got blocks {one} and {two}"
            )


def _share(manifest: Manifest) -> int:
    share = manifest.provenance.objective.get(_SHARE, 1)
    return share if isinstance(share, int) and share >= 1 else 1


def _part(directory: Path, manifest: Manifest) -> GramFile | SumsFile:
    """What RegMean knows of an adapter beside its weights: running sums of a fused one, Grams of a trained one."""
    if (sums := directory / SUMS_NAME).is_file():
        return SumsFile(sums, manifest)
    d, rank = manifest.base_model.hidden_size, manifest.adapter.rank
    return GramFile(directory / GRAMS_NAME, manifest.adapter.sites, rank=rank, hidden_size=d)


def _options(parts: Mapping[Path, GramFile | SumsFile], given: RegMean | None) -> RegMean:
    """The options to fuse with, which must be those that running sums were made with."""
    made = {directory: part.header.options for directory, part in parts.items() if isinstance(part, SumsFile)}
    chosen = given or next(iter(made.values()), RegMean())
    for directory, options in made.items():
        if options != chosen:
            raise FusionError(
                f"{directory}: its running sums were made with {asdict(options)}, expected {asdict(chosen)}; "
                "go on with the same, or fuse the trained adapters anew"
            )
    return chosen


def _members(parts: Mapping[Path, GramFile | SumsFile], manifests: Mapping[Path, Manifest]) -> list[str]:
    """The digests of the weights of every trained adapter behind `parts`, none twice."""
    found: dict[str, Path] = {}
    for directory, part in parts.items():
        own = manifests[directory].files[_TENSORS].sha256
        for digest in part.header.parents if isinstance(part, SumsFile) else (own,):
            if digest in found:
                raise FusionError(f"cannot fuse {found[digest]} and {directory}: one adapter is part of both")
            found[digest] = directory
    return list(found)


def _write_weights(directory: Path, fused: Fusible, sites: Mapping[int, str], *, like: Path) -> None:
    """Write the PEFT checkpoint; the configuration is that of the parent `like`, with the new rank."""
    config = json.loads((like / _CONFIG).read_bytes())
    config["r"] = config["lora_alpha"] = fused.tensors.rank
    (directory / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    tensors = {}
    for block, site in sites.items():
        down, up = tensor_names(site)
        tensors[down] = fused.tensors.w_down[block].contiguous()
        tensors[up] = fused.tensors.w_up[block].contiguous()
    save_file(tensors, directory / _TENSORS, metadata={"format": "pt"})


def _manifest(
    directory: Path,
    fused: Fusible,
    parents: Sequence[Manifest],
    objective: dict[str, float | int | str | bool],
) -> Manifest:
    """The manifest of the files in `directory`; of the parents' data it says nothing, their own manifests do."""
    files, tensors = describe_adapter_dir(directory)
    first = parents[0]
    return type(first)(
        base_model=first.base_model,
        adapter=type(first.adapter)(
            rank=fused.tensors.rank,
            activation=first.adapter.activation,
            sites=first.adapter.sites,
            dtype=next(iter(tensors.values())).dtype,
            tensors=tensors,
        ),
        deletion_ids=deletion_ids([one for parent in parents for one in parent.deletion_ids]),
        parents=tuple(parent.digest for parent in parents),
        provenance=Provenance(
            created_at=datetime.now(UTC),
            versions={"unlearn-serve": __version__, "torch": torch.__version__},
            seed=0,
            command=sys.argv,
            objective=objective,
            data={},
        ),
        evaluation=None,
        files=files,
    )
