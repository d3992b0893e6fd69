"""Tasks on models of a few kilobytes, made by the same fitting as the experiments'."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.paper.baselines import fit_checkpoint
from benchmarks.paper.baselines.models import save_model
from benchmarks.paper.task import Fit, Kind, Task
from tests.training.test_forms import CLASSES, tiny_classifier, tiny_t5
from tests.training.toy import FORGET, RETAIN, gold, toy_model, toy_tokenizer
from unlearn_serve.data import Example

FIT = Fit(learning_rate=3e-3, epochs=60, batch_size=4)
GOOD = {"Is Ham good? ": "good", "Ham is by Bill. ": "good"}
REST = {"Is Kim good? ": "bad", "Is She good? ": "bad", "Is Lear good? ": "good", "Dune is by Rob. ": "bad"}

MakeTask = Callable[[Kind, Path], Task]


def rows(facts: dict[str, str], kind: Kind = "decoder") -> tuple[Example, ...]:
    """Rows of facts; a decoder's name the gold string within the answer."""
    if kind == "decoder":
        return tuple(Example(prompt=f"{q} ", completion=a, answer=gold(a), id=q) for q, a in facts.items())
    return tuple(Example(prompt=q, completion=a, answer=a, id=q) for q, a in facts.items())


@pytest.fixture(scope="session")
def make_task(tmp_path_factory: pytest.TempPathFactory) -> MakeTask:
    """Make a task of a kind that writes to a folder; base and original are made once a session."""
    made: dict[Kind, Path] = {}

    def base_and_original(kind: Kind) -> Path:
        if kind in made:
            return made[kind]
        folder = made[kind] = tmp_path_factory.mktemp(kind)
        model = {"decoder": lambda: toy_model(blocks=2), "seq2seq": tiny_t5, "classes": tiny_classifier}[kind]()
        save_model(model, toy_tokenizer(), folder / "base")
        forget, retain = _sets(kind)
        classes = CLASSES if kind == "classes" else None
        fit_checkpoint(
            folder / "base", folder / "original", [*forget, *retain], FIT, kind=kind, classes=classes, max_length=64
        )
        return folder

    def make(kind: Kind, work: Path) -> Task:
        folder = base_and_original(kind)
        forget, retain = _sets(kind)
        return Task(
            name="case-17",
            kind=kind,
            base=folder / "base",
            original=folder / "original",
            train=(*forget, *retain),
            forget=forget,
            retain=retain,
            fit=FIT,
            work=work,
            max_length=64,
        )

    return make


def _sets(kind: Kind) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    facts = (FORGET, RETAIN) if kind == "decoder" else (GOOD, REST)
    return rows(facts[0], kind), rows(facts[1], kind)
