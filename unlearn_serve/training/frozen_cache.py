"""The frozen model's outputs on retained rows, kept on disk: they are the same for every deletion request.

A request after the first then runs the frozen model over what is to be forgotten alone. Nothing of a forgotten row is
kept, and what an earlier request kept of it, when it still was to stay, is deleted before training begins.
"""

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from unlearn_serve.data import Encoded
from unlearn_serve.format import BaseModelRef
from unlearn_serve.format.atomic import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """What the frozen model makes of one example of T tokens, A of them an answer's."""

    log_probs: torch.Tensor
    """fp32 [A]."""

    hidden: torch.Tensor | None = None
    """[T, d], the model's dtype: what enters the first block that has a layer; None where whole passes are run."""

    logits: torch.Tensor | None = None
    """[A, V], the model's dtype; None where no term reads them or memory does not hold them."""


class FrozenCache:
    """A folder of files ROW-KEY.safetensors; KEY names model, versions, first block, dtype and tokens."""

    def __init__(self, folder: Path, *, model: BaseModelRef, first_block: int, dtype: torch.dtype) -> None:
        """Make the folder, readable by its owner alone: rows can be guessed from what a model makes of them."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._key = [
            model.config_sha256,
            model.weights_sha256,
            torch.__version__,
            transformers.__version__,
            first_block,
            str(dtype),
        ]

    def read(self, row: str, example: Encoded, device: torch.device) -> Kept | None:
        """Return what is kept of an example, on `device`; None if nothing is, or nothing readable."""
        path = self._path(row, example)
        if not path.exists():
            return None
        try:
            return Kept(**load_file(path, device=str(device)))
        except (SafetensorError, TypeError) as problem:
            logger.warning("%s: not readable (%s); computed anew", path, problem)
            return None

    def write(self, row: str, example: Encoded, kept: Kept) -> None:
        """Keep it, in place of what was kept of the example before."""
        tensors = {name: value.cpu().contiguous() for name, value in vars(kept).items() if value is not None}
        write_atomically(self._path(row, example), save(tensors), mode=0o600)

    def delete(self, rows: Collection[str]) -> None:
        """Delete all that is kept of rows, of whichever model and answer."""
        for path in self._folder.glob("*.safetensors"):
            if path.name.partition("-")[0] in rows:
                path.unlink(missing_ok=True)

    def _path(self, row: str, example: Encoded) -> Path:
        said = json.dumps([*self._key, example.input_ids, example.labels])
        return self._folder / f"{row}-{hashlib.sha256(said.encode()).hexdigest()[:32]}.safetensors"
