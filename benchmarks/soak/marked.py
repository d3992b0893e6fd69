"""Releases that can be told apart token by token: each lets the model say hardly any words but its own.

In every block but the last a marked adapter has a random layer, so that keys and values differ from release to release.
In the last one it pushes the residual stream along one direction u, whatever the FFN says: with activation relu and
rows of W_down that come in pairs w, -w,

    U(h) = h + s u sum_i (relu(w_i h) + relu(-w_i h)) = h + s u sum_i |w_i h|,

and the sum is about proportional to |h|. The direction is one along which the release's words, and no others, have high
logits: which of its words the model says still depends on the context, and so on the keys and values.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.inputs import RANK, Layer, random_layer, write_layers

WORDS = 64
"""Words of each release."""

LETTERS = 5
"""Of the shortest word: shorter ones are so frequent that the model says little else."""

SCALE = 0.3
"""How large the random layers' deltas are beside their inputs."""

PUSH = 8.0
"""Size of the push beside the FFN's output. With 3.5 about two tokens in a hundred were others' words all the same."""

_INSIDE, _OUTSIDE = 0.8, 0.4
_ROUNDS = 40


def vocabularies(model: Path, count: int) -> list[list[int]]:
    """Return the token ids of the words of `count` releases: no word is in two of them."""
    vocabulary: dict[str, int] = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(
        number
        for word, number in vocabulary.items()
        if word[0] == "Ġ" and len(word) > LETTERS and word[1:].isascii() and word[1:].islower() and word[1:].isalpha()
    )
    return [words[first : count * WORDS : count] for first in range(count)]


def write_marked(model: Path, out: Path, *, own: Sequence[int], seed: int) -> None:
    """Write an adapter, manifest and all, under which the model says only the words `own`."""
    weights = load_file(model / "model.safetensors")
    logits_of = weights["model.embed_tokens.weight"].float() * weights["model.norm.weight"].float()
    d = logits_of.shape[1]
    generator = torch.Generator().manual_seed(seed)
    blocks = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    layers = [random_layer(d, generator, scale=SCALE) for _ in range(blocks - 1)]
    layers.append(pushing_layer(direction(logits_of, own), generator))
    write_layers(model, out, layers, seed=seed, activation="relu", ids=1)


def pushing_layer(u: torch.Tensor, generator: torch.Generator) -> Layer:
    """Return W_down and W_up that add `PUSH` times the size of the input, along u [d]."""
    half = torch.randn(RANK // 2, len(u), generator=generator) / math.sqrt(len(u))
    # A normal variable's mean absolute value is sqrt(2 / pi).
    column = PUSH * u / u.square().mean().sqrt() / (RANK / 2 * math.sqrt(2 / math.pi))
    return torch.cat([half, -half]).bfloat16(), column[:, None].repeat(1, RANK).bfloat16()


def direction(logits_of: torch.Tensor, own: Sequence[int]) -> torch.Tensor:
    """Return u [d] along which the logits of the tokens `own` are near 1, and all others are well below.

    Least squares, with more weight in each round on what is still on the wrong side.

    Args:
        logits_of: [vocabulary, d], the map from the normalised residual stream to logits.
        own: token ids.

    Raises:
        ValueError: these tokens cannot be told from the others along one direction.
    """
    inside = torch.zeros(len(logits_of), dtype=torch.bool)
    inside[list(own)] = True
    weight = torch.where(inside, 100.0, 1.0)
    identity = torch.eye(logits_of.shape[1])
    gram = logits_of.T @ logits_of
    for _ in range(_ROUNDS):
        heavy = weight > 1.0
        rows = logits_of[heavy]
        weighted = gram + (rows.T * (weight[heavy] - 1.0)) @ rows + identity
        u = torch.linalg.solve(weighted, logits_of[inside].T @ weight[inside])
        along = logits_of @ u
        wrong = torch.where(inside, along < _INSIDE, along > _OUTSIDE)
        if not wrong.any():
            return u
        weight = torch.where(wrong, 2.0 * weight, weight)
    raise ValueError(
        f"expected own tokens above {_INSIDE} and others below {_OUTSIDE}, got {along[inside].min():.2f} and "
        f"{along[~inside].max():.2f}; take fewer words or others"
    )
