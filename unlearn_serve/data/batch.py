"""Token ids with labels, and batches of them padded on the left."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

IGNORED = -100
"""Label of a position that no loss and no score counts."""


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    Attributes:
        input_ids: prompt and answer.
        labels: as long as `input_ids`; the token's own id where it belongs to the answer, else `IGNORED`. Aligned with
            `input_ids` (transformers' convention): the logits at position t - 1 predict the label at t.
        closed: the last token ends the turn, or the sequence, and is no word of the answer.
    """

    input_ids: list[int]
    labels: list[int]
    closed: bool = False

    def __post_init__(self) -> None:
        assert len(self.input_ids) == len(self.labels)

    @property
    def answer_tokens(self) -> int:
        """How many positions carry a label."""
        return sum(label != IGNORED for label in self.labels)

    @property
    def prompt(self) -> list[int]:
        """What comes before the first label."""
        return self.input_ids[: next((i for i, label in enumerate(self.labels) if label != IGNORED), None)]


def collate_left(batch: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """Stack examples into int64 tensors [B, T], padded on the left to the longest.

    Returns:
        `input_ids` (pads are `pad_id`), `attention_mask` (1 where real), `position_ids` (counted from the first real
        token; 0 on pads) and `labels` (`IGNORED` on pads).
    """
    length = max(len(one.input_ids) for one in batch)
    input_ids = torch.full((len(batch), length), pad_id, dtype=torch.int64)
    labels = torch.full((len(batch), length), IGNORED, dtype=torch.int64)
    mask = torch.zeros((len(batch), length), dtype=torch.int64)
    for row, one in enumerate(batch):
        start = length - len(one.input_ids)
        input_ids[row, start:] = torch.tensor(one.input_ids)
        labels[row, start:] = torch.tensor(one.labels)
        mask[row, start:] = 1
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions, "labels": labels}
