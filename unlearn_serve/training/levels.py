"""How far forgetting has come: measured levels, and when they suffice."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.terms import kl


@dataclass(frozen=True)
class Levels:
    """What a check found; NaN where the set is empty or was not looked at."""

    forget_probability: float
    """Mean over forgotten answers of their probability, in [0, 1], see `Answers.log_probs`."""

    retain_probability: float
    """The same over retained answers."""

    retain_kl: float
    """Mean over retained answers of KL(F || F(f)) per token, in nats."""

    def as_dict(self) -> dict[str, float]:
        """Return the levels that were measured, by name."""
        return {name: value for name, value in asdict(self).items() if not math.isnan(value)}


@torch.no_grad()
def measure(
    outputs: FrozenOutputs,
    forward: nn.Module,
    forget: Sequence[int],
    retain: Sequence[int],
    *,
    forget_target: float | None = None,
) -> Levels:
    """Measure the levels of the layers as they are; retained answers only if the forgotten ones reach the target."""
    forget_probability, _ = _level(outputs, forward, forget, with_kl=False)
    if forget_target is not None and not forget_probability <= forget_target:
        return Levels(forget_probability, math.nan, math.nan)
    return Levels(forget_probability, *_level(outputs, forward, retain, with_kl=True))


def _level(outputs: FrozenOutputs, forward: nn.Module, members: Sequence[int], *, with_kl: bool) -> tuple[float, float]:
    if not members:
        return math.nan, math.nan
    probability = divergence = 0.0
    for row in outputs.rows(members):
        logits = outputs.student_logits(forward, row)
        probability += outputs.answers(row, logits).log_probs().exp().sum().item()
        if with_kl:
            teacher = outputs.teacher_logits(forward, row).float().log_softmax(-1)
            divergence += kl(logits, teacher, row.mask).sum().item()
    return probability / len(members), divergence / len(members) if with_kl else math.nan
