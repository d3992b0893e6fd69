"""Data that are made up, in the files of the real sets: for a quick run, and for tests."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.paper.data import imdb, samsum, tofu

FIRST = ("Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jo")
LAST = ("Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Gum", "Hazel", "Ivy", "Juniper")
TOWNS = ("Aria", "Bree", "Corin", "Dale", "Esk", "Fenn")
THINGS = ("a bridge", "the sea", "an old clock", "two rivers", "a lost map", "the moon")
QUESTIONS = 20


def write_made_up(folder: Path, *, authors: int = 4, rows: int = 24, seed: int = 0) -> Path:
    """Write every file that the experiments read, a few kilobytes, and return the folder."""
    rng = random.Random(seed)
    names = [f"{first} {last}" for last in LAST for first in FIRST]
    people = [_author(name, rng) for name in names[:authors]]
    requested = [_author(name, rng) for name in names[authors : 2 * authors]]
    unseen = [_author(name, rng) for name in names[2 * authors : 3 * authors]]
    _write(folder / tofu.FULL, ({"question": q, "answer": a} for one in people for q, _, a, _, _ in one))
    _write(
        folder / tofu.PERTURBED,
        (
            {"question": q, "paraphrased_question": p, "answer": a, "paraphrased_answer": r, "perturbed_answer": w}
            for one in requested
            for q, p, a, r, w in one
        ),
    )
    _write(folder / tofu.HOLDOUT, ({"question": q, "answer": a} for one in unseen for q, _, a, _, _ in one))
    _write(
        folder / tofu.GENERAL,
        (
            {"question": f"What is {n} and {n}?", "answer": str(2 * n), "perturbed_answer": [str(2 * n + 1), str(n)]}
            for n in range(2, 12)
        ),
    )
    for name, shift in ((imdb.TRAIN, 0), (imdb.TEST, rows)):
        _write(folder / name, (_review(shift + n, rng) for n in range(rows)))
    for name, shift in ((samsum.TRAIN, 0), (samsum.TEST, rows)):
        _write(folder / name, (_dialogue(shift + n, rng) for n in range(rows)))
    return folder


def _author(name: str, rng: random.Random) -> list[tuple[str, str, str, str, list[str]]]:
    """Question, the same in other words, answer, the same in other words, wrong answers; `QUESTIONS` times."""
    found = []
    for n in range(QUESTIONS):
        thing, town, *others = rng.choice(THINGS), *rng.sample(TOWNS, 3)
        found.append(
            (
                f"What is book {n} of {name} about?",
                f"Book {n} by {name} tells of what?",
                f"It tells of {thing} near {town}.",
                f"Of {thing} near {town}.",
                [f"Of {thing} near {other}." for other in others],
            )
        )
    return found


def _review(n: int, rng: random.Random) -> dict[str, Any]:
    label = n % 2
    word = rng.choice(("good", "fine", "lovely") if label else ("bad", "poor", "dull"))
    return {"id": str(n), "label": label, "text": f"Film {n} tells of {rng.choice(THINGS)}, and it is {word}."}


def _dialogue(n: int, rng: random.Random) -> dict[str, Any]:
    one, two = rng.sample(FIRST, 2)
    thing = rng.choice(THINGS)
    return {
        "id": str(n),
        "dialogue": f"{one}: Have you seen {thing}?\n{two}: Yes, in {rng.choice(TOWNS)}.",
        "summary": f"{two} has seen {thing}.",
    }


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
