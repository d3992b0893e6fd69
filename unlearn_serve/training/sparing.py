"""Layers are taken out of the way of what retained rows read, in closed form: fused with layers that do nothing.

Training pushes W_up along whatever features forgotten rows have, also along those that every other row has. RegMean
between the trained map, on what it reads in forgotten rows, and the zero map, on what it reads in retained ones, keeps
of W_up what tells the two apart.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unlearn_serve.fusion import RegMean, regmean
from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.gram_hooks import ExactGram

_OPTIONS = RegMean(off_diagonal=1.0)
"""Grams of trace 1, whatever the numbers of rows, and not shrunk: both come from the same layer's features."""


def outer_maps(forward: nn.Module) -> list[nn.Linear]:
    """The maps that PEFT names lora_B: W_up, and also LoRA's outer map."""
    named = forward.named_modules()
    return [module for name, module in named if ".lora_B." in name and isinstance(module, nn.Linear)]


@torch.no_grad()
def spared(
    outputs: FrozenOutputs, forward: nn.Module, forget: Sequence[int], retain: Sequence[int], maps: Sequence[nn.Linear]
) -> list[Tensor]:
    """Semantics: for each map W [d, r], W' = W F (F + R)^-1, the least squares between W and 0.

        sum_forgotten |W' a - W a|^2 / tr F + sum_retained |W' a|^2 / tr R   is least

    with a the map's inputs, F = sum a a^T over all tokens of the forgotten rows and R over those of the retained ones,
    each divided by its trace. The closed form is RegMean's (Jin et al., ICLR 2023) of W and of a map of zeros.

    Args:
        outputs: of the frozen model.
        forward: the model with its layers; not changed.
        forget: forgotten examples, one pass.
        retain: retained examples, one pass.
        maps: of `forward`.

    Returns:
        Each W' in W's dtype and on its device.
    """
    forgotten, retained = (_read(outputs, forward, members, maps) for members in (forget, retain))
    return [
        regmean([one.weight.cpu(), torch.zeros(one.weight.shape)], [f, r], _OPTIONS).to(one.weight)
        for one, f, r in zip(maps, forgotten, retained, strict=True)
    ]


def _read(
    outputs: FrozenOutputs, forward: nn.Module, members: Sequence[int], maps: Sequence[nn.Linear]
) -> list[Tensor]:
    """The Gram [r, r] of what each map reads on the examples, fp32 on the CPU."""
    grams = [ExactGram(one.in_features, one.weight.device) for one in maps]
    handles = [one.register_forward_pre_hook(gram.hook) for one, gram in zip(maps, grams, strict=True)]
    try:
        for row in outputs.rows(members):
            outputs.run_layers(forward, row)
    finally:
        for handle in handles:
            handle.remove()
    return [gram.result() for gram in grams]
