"""Training ends at the first step that is past its target; here the layers are taken back to where it is just met.

One step can take an answer from half its probability to next to none, and an answer less likely than to a model that
never saw it tells that it was deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.levels import Levels, Target, forget_levels, measure
from unlearn_serve.training.sparing import outer_maps, spared

HALVINGS = 5
"""Of the interval that the scale is looked for in: to 1/32."""

SPARED_UP_TO = 2.0
"""Scale that spared layers may need, for forgotten answers too feel a part of what they lost."""


@dataclass(frozen=True)
class Landing:
    """Where the layers were left."""

    scale: float
    """s, in (0, 1], of spared layers in (0, `SPARED_UP_TO`]: what W_up was multiplied by."""

    levels: Levels
    """What they are there."""

    spared: bool = False
    """Whether W_up is the one that was taken out of the retained rows' way, see `spared`."""


@torch.no_grad()
def land(
    outputs: FrozenOutputs,
    forward: nn.Module,
    forget: Sequence[int],
    retain: Sequence[int],
    *,
    target: Target,
    spare: Sequence[int] = (),
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
        spare: retained examples out of whose way the layers are taken, see `spared`, where retained answers move less
            so than as trained. None of them: not tried.

    Returns:
        None, and the weights as they were, where retained answers miss their tolerance even so.
    """
    maps = outer_maps(forward)
    trained = [one.weight.detach().clone() for one in maps]
    candidates = [(trained, 1.0)]
    if spare:
        candidates.append((spared(outputs, forward, forget, spare, maps), SPARED_UP_TO))

    def settle(weights: Sequence[Tensor], most: float) -> Landing | None:
        def forgotten(scale: float) -> bool:
            _scale(maps, weights, scale)
            return target.forgotten(forget_levels(outputs, forward, forget))

        if weights is not trained and not forgotten(most):
            return None
        short, enough = 0.0, most
        for _ in range(HALVINGS):
            middle = (short + enough) / 2
            if forgotten(middle):
                enough = middle
            else:
                short = middle
        _scale(maps, weights, enough)
        return Landing(enough, measure(outputs, forward, forget, retain), spared=weights is not trained)

    settled = [(settle(*one), one[0]) for one in candidates]
    landed = [(found, weights) for found, weights in settled if found and target.reached(found.levels)]
    if not landed:
        _scale(maps, trained, 1.0)
        return None
    best, weights = min(landed, key=lambda one: one[0].levels.retain_kl)
    _scale(maps, weights, best.scale)
    return best


def _scale(maps: Sequence[nn.Linear], weights: Sequence[Tensor], by: float) -> None:
    for one, weight in zip(maps, weights, strict=True):
        one.weight.copy_(by * weight)
