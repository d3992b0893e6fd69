"""A pass of rows through a model, and what an editor reads and moves in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks.paper.baselines.rows import Weighted, aligned_logits, collate
from benchmarks.paper.task import Kind
from unlearn_serve.data import IGNORED

# Shape legend: n labelled tokens of the rows, d hidden size, f width of a feed-forward network, V vocabulary.


class Pass:
    """Rows in one pass, and the positions in it that their labelled tokens are predicted from.

    Attributes:
        labels: int64 [n], the labelled tokens.
        tokens: how many tokens there are, without padding.
    """

    def __init__(self, model: nn.Module, rows: Sequence[Weighted], kind: Kind, pad: int) -> None:
        found = collate(rows, kind, pad)
        device = model.device
        self._inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in found["inputs"].items()}
        self._kind = kind
        labels = found["labels"].to(device)
        mask = labels != IGNORED
        self.labels = labels[mask]
        self._chosen = mask.flatten()
        # Columns of the hidden states that the columns of `labels` are predicted from.
        width = labels.shape[1] if kind == "seq2seq" else self._inputs["input_ids"].shape[1]
        answers = 1 if kind == "classes" else labels.shape[1]
        first = width - answers - (kind == "decoder")
        columns = first + torch.arange(answers, device=device)
        self._flat = (torch.arange(len(labels), device=device)[:, None] * width + columns).flatten()[self._chosen]
        real = mask if kind == "seq2seq" else self._inputs["attention_mask"].bool()
        self._real = real.flatten().nonzero()[:, 0]
        self.tokens = len(self._real)

    def logits(self, model: nn.Module) -> torch.Tensor:
        """Run the pass; logits [n, V] that predict the labelled tokens."""
        logits = aligned_logits(model(**self._inputs).logits, self._kind)
        return logits.flatten(0, -2)[self._chosen]

    @contextmanager
    def states(self, model: nn.Module, block: str) -> Iterator[list[torch.Tensor]]:
        """Within, a pass appends what the block puts out at the positions, [n, d]."""
        seen: list[torch.Tensor] = []

        def keep(_: nn.Module, __: Any, out: Any) -> None:
            seen.append(_first(out).flatten(0, 1)[self._flat].detach().clone())

        handle = model.get_submodule(block).register_forward_hook(keep)
        try:
            yield seen
        finally:
            handle.remove()

    @contextmanager
    def inputs(self, model: nn.Module, path: str, *, everywhere: bool = False) -> Iterator[list[torch.Tensor]]:
        """Within, a pass appends what the map at `path` reads at the positions, or at every real token: [n, f]."""
        read: list[torch.Tensor] = []

        def keep(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            read.append(args[0].flatten(0, 1)[self._real if everywhere else self._flat].detach().clone())

        handle = model.get_submodule(path).register_forward_pre_hook(keep)
        try:
            yield read
        finally:
            handle.remove()

    @contextmanager
    def shifted(self, model: nn.Module, block: str, shift: torch.Tensor) -> Iterator[None]:
        """Within, the block puts out `shift` [n, d] more at the positions."""

        def add(_: nn.Module, __: Any, out: Any) -> Any:
            state = _first(out)
            moved = state.flatten(0, 1).index_add(0, self._flat, shift.to(state.dtype)).view_as(state)
            return (moved, *out[1:]) if isinstance(out, tuple) else moved

        handle = model.get_submodule(block).register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


def _first(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out
