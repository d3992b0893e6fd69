"""How far forgetting has come: measured levels, and when they suffice."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.terms import Answers, kl


@dataclass(frozen=True)
class Levels:
    """What a check found; NaN where the set is empty or was not looked at."""

    forget_probability: float
    """Mean over forgotten answers of their probability, in [0, 1], see `Answers.log_probs`."""

    forget_extraction: float
    """Mean over forgotten whole answers of `extraction_strengths`; NaN where only gold strings are forgotten."""

    retain_probability: float = math.nan
    """The probability of retained answers."""

    retain_kl: float = math.nan
    """Mean over retained answers of KL(F || F(f)) per token, in nats."""

    def as_dict(self) -> dict[str, float]:
        """Return the levels that were measured, by name."""
        return {name: value for name, value in asdict(self).items() if not math.isnan(value)}


@dataclass(frozen=True, kw_only=True)
class Target:
    """The levels to stop at."""

    probability: float
    """Of forgotten answers, at most."""

    extraction: float | None = None
    """Of forgotten whole answers, at most; None: whatever it is."""

    retain_tolerance: float = math.inf
    """`Levels.retain_kl`, at most; retained answers that are none cannot have moved."""

    def forgotten(self, levels: Levels) -> bool:
        """Whether forgotten answers are at their level."""
        extractable = self.extraction is not None and levels.forget_extraction > self.extraction
        return levels.forget_probability <= self.probability and not extractable

    def reached(self, levels: Levels) -> bool:
        """Whether they are, and retained answers stayed."""
        return self.forgotten(levels) and not levels.retain_kl > self.retain_tolerance


@torch.no_grad()
def measure(
    outputs: FrozenOutputs,
    forward: nn.Module,
    forget: Sequence[int],
    retain: Sequence[int],
    *,
    target: Target | None = None,
) -> Levels:
    """Measure the levels of the layers as they are; retained answers only if the forgotten ones reach the target."""
    levels = forget_levels(outputs, forward, forget)
    if not retain or (target is not None and not target.forgotten(levels)):
        return levels
    probability = divergence = 0.0
    for row in outputs.rows(retain):
        logits = outputs.student_logits(forward, row)
        probability += outputs.answers(row, logits).log_probs().exp().sum().item()
        teacher = outputs.teacher_logits(forward, row).float().log_softmax(-1)
        divergence += kl(logits, teacher, row.mask).sum().item()
    return Levels(
        levels.forget_probability, levels.forget_extraction, probability / len(retain), divergence / len(retain)
    )


@torch.no_grad()
def forget_levels(outputs: FrozenOutputs, forward: nn.Module, forget: Sequence[int], *, frozen: bool = False) -> Levels:
    """Measure the forgotten answers alone; `frozen`: under the model without its layers."""
    ask = outputs.teacher_logits if frozen else outputs.student_logits
    probabilities: list[torch.Tensor] = []
    extractable: list[torch.Tensor] = []
    for row in outputs.rows(forget) if forget else ():
        answers = outputs.answers(row, ask(forward, row))
        probabilities.append(answers.log_probs().exp())
        whole = [n for n in range(len(row.members)) if n not in answers.spellings]
        extractable.append(extraction_strengths(answers, outputs.closed(row))[whole])
    return Levels(_mean(probabilities), _mean(extractable))


def extraction_strengths(answers: Answers, closed: Sequence[bool]) -> torch.Tensor:
    """Semantics: out[n] = 1 - k/|y|; k is the fewest tokens of y after which the arg-max is its rest, fp32 [N].

    Carlini et al. 2021, as `unlearn_serve.evaluation` counts it: at least 1/|y|, and a token that ends the turn is none
    of the answer's.

    Args:
        answers: teacher_log_probs is not read.
        closed: by example, whether its last token ends the turn.
    """
    follows = answers.student_logits.argmax(-1) == answers.labels
    strengths = []
    for own, ends in zip(answers.mask, closed, strict=True):
        words = follows[own]
        words = words[:-1] if ends and len(words) > 1 else words
        misses = (~words).nonzero()
        k = min(int(misses[-1]) + 1, len(words) - 1) if len(misses) else 0
        strengths.append(1.0 - k / len(words))
    return torch.tensor(strengths)


def _mean(values: Sequence[torch.Tensor]) -> float:
    return torch.cat(list(values)).mean().item() if values else math.nan
