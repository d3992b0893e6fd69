"""Packing: several examples in one row of tokens, their common beginning only once, no padding.

    tokens     p0 p1 p2 | a3 a4 a5 | b3 b4 | c3 c4 c5 c6
    positions  0  1  2  | 3  4  5  | 3  4  | 3  4  5  6
    segment    0  0  0  | 1  1  1  | 2  2  | 3  3  3  3

A token attends to the tokens of the shared prefix and of its own segment up to itself, so each example gets exactly
what it would get alone: chat templates make the prefix half of a short example, and here it is computed once a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from unlearn_serve.data import IGNORED, Encoded

# Shape legend: T tokens of a row, A answer tokens of a row, N examples in it.


@dataclass(frozen=True, kw_only=True)
class Row:
    """Examples packed into one row."""

    members: tuple[int, ...]
    """Indices of the examples, in the order of their segments."""

    prefix: int
    """Tokens of the shared prefix."""

    input_ids: torch.Tensor
    """int64 [1, T]."""

    position_ids: torch.Tensor
    """int64 [1, T]: a token's position in its own example."""

    segment: torch.Tensor
    """int64 [T]: 0 for the shared prefix, n + 1 for the n-th member's own tokens."""

    predictors: torch.Tensor
    """int64 [A]: where in the row the logits stand that predict each answer token."""

    labels: torch.Tensor
    """int64 [A]: the answer tokens."""

    owner: torch.Tensor
    """int64 [A]: which member (0..N-1) each answer token belongs to."""

    @property
    def mask(self) -> torch.Tensor:
        """Which answer tokens each member owns, bool [N, A]."""
        return F.one_hot(self.owner, len(self.members)).bool().T

    def attention_mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the additive mask [1, 1, T, T] in `dtype`: 0 where a token may look, the lowest number elsewhere."""
        segment = self.segment
        length = len(segment)
        seen = (segment[None, :] == segment[:, None]) | (segment[None, :] == 0)
        seen &= torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
        lowest = torch.finfo(dtype).min
        return torch.zeros(length, length, dtype=dtype, device=segment.device).masked_fill_(~seen, lowest)[None, None]

    def to(self, device: torch.device) -> "Row":
        """Return the row with its tensors on `device`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return Row(members=self.members, prefix=self.prefix, **moved)


def common_prefix_length(examples: Sequence[Encoded]) -> int:
    """Return how many tokens all examples begin with; an answer's own tokens never count."""
    first_answers = [len(e.prompt) for e in examples]
    # What the first and the last in lexicographic order have in common, all have in common.
    low, high = min(e.input_ids for e in examples), max(e.input_ids for e in examples)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return min(same, *first_answers)


def pack_row(examples: Sequence[Encoded], members: Sequence[int], prefix: int) -> Row:
    """Pack `examples[m] for m in members`, whose first `prefix` tokens are the same, into one row."""
    tokens = list(examples[members[0]].input_ids[:prefix])
    positions = list(range(prefix))
    segment = [0] * prefix
    predictors: list[int] = []
    labels: list[int] = []
    owner: list[int] = []
    for n, member in enumerate(members):
        example = examples[member]
        start = len(tokens) - prefix  # so that token t of the example stands at start + t, where t >= prefix
        for t, label in enumerate(example.labels):
            if label != IGNORED:
                predictors.append(start + t - 1 if t > prefix else prefix - 1)
                labels.append(label)
                owner.append(n)
        tokens += example.input_ids[prefix:]
        positions += range(prefix, len(example.input_ids))
        segment += [n + 1] * (len(example.input_ids) - prefix)
    return Row(
        members=tuple(members),
        prefix=prefix,
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        segment=torch.tensor(segment),
        predictors=torch.tensor(predictors),
        labels=torch.tensor(labels),
        owner=torch.tensor(owner),
    )


def pack_rows(examples: Sequence[Encoded], members: Sequence[int], prefix: int, row_tokens: int) -> list[Row]:
    """Pack in order into rows of at most `row_tokens` tokens; at least one example goes in each."""
    groups: list[list[int]] = []
    room = 0
    for member in members:
        own = len(examples[member].input_ids) - prefix
        if not groups or own > room:
            groups.append([])
            room = row_tokens - prefix
        groups[-1].append(member)
        room -= own
    return [pack_row(examples, group, prefix) for group in groups]
