"""The manifest of a freshly trained adapter."""

import platform
from datetime import UTC, datetime
from pathlib import Path

import peft
import torch
import transformers

from unlearn_serve import __version__
from unlearn_serve.data import data_ref
from unlearn_serve.format import (
    AdapterSpec,
    DataRef,
    Manifest,
    Provenance,
    TwoStackManifest,
    TwoStackSpec,
    deletion_ids,
    describe_adapter_dir,
    fingerprint_base_model,
    one_line_errors,
)
from unlearn_serve.training.args import TrainArgs


def build_manifest(
    args: TrainArgs,
    directory: Path,
    sites: dict[int, str],
    outcome: dict[str, float | int | str | bool],
    *,
    two_stacks: bool = False,
) -> Manifest:
    """Describe the adapter files in `directory`.

    Args:
        args: what the run was told.
        directory: holds adapter_config.json and adapter_model.safetensors.
        sites: block index -> module path of the feed-forward network, for the adapter's blocks.
        outcome: how training ended, added to the provenance's objective with the models that it was held to.
        two_stacks: the base is an encoder-decoder model.

    Raises:
        FormatError: the base model's folder, the files or the ids are not what the format allows.
    """
    files, tensors = describe_adapter_dir(directory)
    (dtype,) = {one.dtype for one in tensors.values()}
    data: dict[str, DataRef] = {"forget": data_ref(args.forget)}
    if args.retain is not None:
        data["retain"] = data_ref(args.retain)
    if args.holdout is not None:
        data["holdout"] = data_ref(args.holdout)
    # Folders mean nothing elsewhere; weights can be told by their digests.
    others = {"reference": args.reference, "retrained": args.retrained}
    held_to = {
        f"{name}_weights_sha256": fingerprint_base_model(folder).weights_sha256
        for name, folder in others.items()
        if folder is not None
    }
    kind: type[Manifest] = TwoStackManifest if two_stacks else Manifest
    spec: type[AdapterSpec] = TwoStackSpec if two_stacks else AdapterSpec
    with one_line_errors("manifest.json"):
        return kind(
            base_model=fingerprint_base_model(args.model, name=args.model_name),
            adapter=spec(rank=args.rank, activation=args.activation, sites=sites, dtype=dtype, tensors=tensors),
            deletion_ids=deletion_ids(list(args.deletion_ids)),
            parents=(),
            provenance=Provenance(
                created_at=datetime.now(UTC),
                versions={
                    "unlearn-serve": __version__,
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "peft": peft.__version__,
                },
                seed=args.seed,
                command=list(args.command),
                objective={**args.settings(), **held_to, **outcome},
                data=data,
            ),
            evaluation=None,
            files=files,
        )
