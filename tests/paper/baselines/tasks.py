"""Rows and methods for models of a few kilobytes, and what such a model says of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.baselines import BASELINES
from benchmarks.paper.baselines.rows import Weighted, encode_rows
from benchmarks.paper.task import Baseline, Fit, Kind, Task
from tests.training.test_forms import CLASSES, tiny_classifier, tiny_t5
from tests.training.toy import FORGET, RETAIN, gold, toy_model, toy_tokenizer
from unlearn_serve.data import IGNORED, Example
from unlearn_serve.training.answers import encode_gold

FIT = Fit(learning_rate=3e-3, epochs=60, batch_size=2)
GOOD = {"Is Ham good? ": "good", "Ham is by Bill. ": "good"}
REST = {"Is Kim good? ": "bad", "Is She good? ": "bad", "Is Lear good? ": "good", "Dune is by Rob. ": "bad"}

MODELS = {"decoder": lambda: toy_model(blocks=2), "seq2seq": tiny_t5, "classes": tiny_classifier}

MakeTask = Callable[[Kind, Path], Task]


def rows(facts: dict[str, str], kind: Kind = "decoder") -> tuple[Example, ...]:
    """Rows of facts; a decoder's name the gold string within the answer."""
    if kind == "decoder":
        return tuple(Example(prompt=f"{q} ", completion=a, answer=gold(a), id=q) for q, a in facts.items())
    return tuple(Example(prompt=q, completion=a, answer=a, id=q) for q, a in facts.items())


def sets(kind: Kind) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Forgotten and retained rows."""
    facts = (FORGET, RETAIN) if kind == "decoder" else (GOOD, REST)
    return rows(facts[0], kind), rows(facts[1], kind)


QUICK = {"rank": 8, "learning_rate": 1e-2, "forget_batch": 3, "retain_batch": 4, "max_steps": 60, "depth": (0.0, 1.0)}


def quick(name: str) -> Baseline:
    """A method with settings that suit models of a few kilobytes."""
    found = BASELINES[name]
    if name == "sisa":
        return replace(found, shards=2, slices=2)
    if name in ("lora", "eul-bounded"):
        return replace(found, settings=QUICK)
    if name == "eul":
        return replace(found, settings={**QUICK, "epochs": 30, "learning_rate": 3e-2})
    return found


@torch.no_grad()
def gold_probability(model: Any, asked: Sequence[Example]) -> list[float]:
    """A decoder's probability of each gold string, after the right words before it."""
    found = []
    for row in asked:
        one, _ = encode_gold(row, toy_tokenizer(), 64)
        ids, labels = torch.tensor(one.input_ids), torch.tensor(one.labels)
        log_probs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        said = log_probs.gather(-1, ids[1:, None])[:, 0][labels[1:] != IGNORED]
        found.append(said.sum().exp().item())
    return found


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """All of a model's tensors by name."""
    return dict(model.state_dict())


def encoded(kind: Kind) -> list[Weighted]:
    """All rows of a kind as tokens."""
    forget, retain = sets(kind)
    return encode_rows([*forget, *retain], toy_tokenizer(), kind=kind, max_length=64, classes=CLASSES)
