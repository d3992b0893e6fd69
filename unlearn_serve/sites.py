"""Where unlearning layers act: the output of each decoder block's feed-forward network.

Knows torch only, and neither transformers nor vLLM: both name their blocks `...layers.{i}` (or `...h.{i}`) and hang
the feed-forward network on a child of one of a few names, so one search serves training and serving.
"""

import re
from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

from torch import nn

from unlearn_serve.errors import UnsupportedModel

SITE_NAME = "unlearn"
"""Name of the child module that an equipped feed-forward module ends in."""

FFN_NAMES = ("mlp", "block_sparse_moe", "feed_forward", "ffn", "mixer_ffn")
"""Names under which decoder blocks of transformers and vLLM keep their dense or mixture-of-experts network."""

_BLOCK = re.compile(r"^(?:.*\.)?(?:layers|h|blocks)\.(\d+)$")
_STACKED = re.compile(r"^(?:.*\.)?(encoder|decoder)\.block\.(\d+)\.layer\.\d+\.DenseReluDense$")


def find_ffn_modules(model: nn.Module) -> dict[int, tuple[str, nn.Module]]:
    """Map block index -> (module path, feed-forward module), in order of the blocks.

    Blocks that live on another pipeline rank have no such child and are left out. In an encoder-decoder model of the
    T5 family blocks are counted through both stacks: those of the encoder, then those of the decoder.

    Raises:
        UnsupportedModel: no block has a feed-forward child, or a block index occurs twice (several towers).
    """
    if stacked := _two_stacks(model):
        return stacked
    found: dict[int, tuple[str, nn.Module]] = {}
    for path, block in model.named_modules():
        match = _BLOCK.match(path)
        if match is None:
            continue
        children = dict(block.named_children())
        names = [name for name in FFN_NAMES if name in children]
        if not names:
            continue
        index = int(match[1])
        if index in found:
            raise UnsupportedModel(
                f"block {index} has a feed-forward module at both {found[index][0]!r} and {path!r}; "
                "models with several towers of blocks are not supported"
            )
        found[index] = (f"{path}.{names[0]}", children[names[0]])
    if not found:
        raise UnsupportedModel(
            f"{type(model).__name__}: no decoder block with a feed-forward child named one of {', '.join(FFN_NAMES)}"
        )
    return dict(sorted(found.items()))


def has_two_stacks(model: nn.Module) -> bool:
    """Tell whether `model` is an encoder-decoder model of the T5 family."""
    return bool(_two_stacks(model))


def _two_stacks(model: nn.Module) -> dict[int, tuple[str, nn.Module]]:
    found = [(match, path, ffn) for path, ffn in model.named_modules() if (match := _STACKED.match(path))]
    in_order = sorted(found, key=lambda one: (one[0][1] == "decoder", int(one[0][2])))
    return {index: (path, ffn) for index, (_, path, ffn) in enumerate(in_order)}


def end_forward_in_site(ffn: nn.Module, site: nn.Module) -> None:
    """Hang `site` on `ffn` as its child `unlearn` and let `ffn`'s forward end in it.

    `ffn(x)` then returns `site(ffn(x))`; where the network returns a tuple (hidden states first, router logits
    after), the site sees and replaces the first element. Mutates `ffn`: its class becomes a subclass, so parameter
    names stay as they were and torch.compile traces straight through.

    Raises:
        UnsupportedModel: `ffn` has a child of that name, or something that is not a method in place of its forward
            (hooks of an offloading library), behind which the site would never run.
    """
    if hasattr(ffn, SITE_NAME):
        raise UnsupportedModel(f"{type(ffn).__name__} already has an attribute {SITE_NAME!r}")
    # A method bound on the instance (vLLM's fusers do that) would shadow the class's forward, and so the site.
    forward = vars(ffn).get("forward", MethodType(type(ffn).forward, ffn))
    if not isinstance(forward, MethodType) or forward.__self__ is not ffn:
        raise UnsupportedModel(
            f"{type(ffn).__name__}: its forward was replaced by a {type(forward).__name__} (offloading hooks or "
            "swapped kernels); attach the sites first, or load the model without them"
        )
    vars(ffn).pop("forward", None)
    ffn.__class__ = _class_ending_in_site(type(ffn), forward.__func__)  # type: ignore[arg-type]  # types do hash
    ffn.add_module(SITE_NAME, site)


def ends_in_site(ffn: nn.Module, site: nn.Module) -> bool:
    """Tell whether a call of `ffn` still ends in `site`: nothing has replaced its forward or its child since."""
    return (
        getattr(ffn, SITE_NAME, None) is site
        and "forward" not in vars(ffn)
        and getattr(type(ffn).forward, "ends_in_site", False)
    )


@cache
def _class_ending_in_site(ffn_class: type[nn.Module], inner: Callable[..., Any]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        out = inner(self, *args, **kwargs)
        site = getattr(self, SITE_NAME)
        if isinstance(out, tuple):
            return (site(out[0]), *out[1:])
        return site(out)

    forward.ends_in_site = True  # type: ignore[attr-defined]  # read by `ends_in_site`
    return type(f"{ffn_class.__name__}EndingInSite", (ffn_class,), {"forward": forward})
