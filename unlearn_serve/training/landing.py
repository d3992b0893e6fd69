"""Training ends at the first step that is past its target; here the layers are taken back to where it is just met.

One step can take an answer from half its probability to next to none, and an answer less likely than to a model that
never saw it tells that it was deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.levels import Levels, Target, forget_levels, measure

HALVINGS = 5
"""Of the interval that the scale is looked for in: to 1/32."""


@dataclass(frozen=True)
class Landing:
    """Where the layers were left."""

    scale: float
    """s, in (0, 1]: what W_up was multiplied by."""

    levels: Levels
    """What they are there."""


@torch.no_grad()
def land(
    outputs: FrozenOutputs, forward: nn.Module, forget: Sequence[int], retain: Sequence[int], *, target: Target
) -> Landing | None:
    """Scale every W_up by the smallest s at which forgotten answers are at their target, found by bisection.

    Semantics: U_i(h) = h + s W_up,i act(W_down,i h). Mutates the weights of `forward` that PEFT names lora_B: W_up, and
    also LoRA's outer map.

    Args:
        outputs: of the frozen model.
        forward: the model with its layers, under which forgotten answers are at their target.
        forget: examples that it is measured on, `HALVINGS` times.
        retain: retained examples that the last measurement reads.
        target: the levels.

    Returns:
        None, and the weights as they were, where retained answers miss their tolerance even so.
    """
    outer = [weight for name, weight in forward.named_parameters() if "lora_B" in name]
    trained = [weight.clone() for weight in outer]

    def scale(by: float) -> None:
        for weight, whole in zip(outer, trained, strict=True):
            weight.copy_(by * whole)

    short, enough = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (short + enough) / 2
        scale(middle)
        if target.forgotten(forget_levels(outputs, forward, forget)):
            enough = middle
        else:
            short = middle
    scale(enough)
    levels = measure(outputs, forward, forget, retain)
    if target.reached(levels):
        return Landing(enough, levels)
    scale(1.0)
    return None
