"""IMDB: is a review positive or negative? As text, for a model that generates."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.data.folder import read_jsonl
from unlearn_serve.data import Example
from unlearn_serve.data.rows import parse_row

TRAIN, TEST = "imdb/train.jsonl", "imdb/test.jsonl"
FILES = (TRAIN, TEST)
LABELS = (" negative", " positive")


@dataclass(frozen=True, kw_only=True)
class RowsSize:
    """How much of a data set is used."""

    train: int
    test: int
    retained: int
    """Retained rows that are scored, the first ones."""

    words: int
    """Words of the text at most: longer reviews are cut there, longer dialogues left out."""

    def as_json(self) -> dict[str, Any]:
        """For a stage's settings."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A data set cut to size."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]

    def forget(self, share: float) -> tuple[Example, ...]:
        """The share of the training rows that is to go, the first ones; at least one row."""
        return self.train[: max(1, round(share * len(self.train)))]

    def retain(self, share: float) -> tuple[Example, ...]:
        """The training rows that stay."""
        return self.train[len(self.forget(share)) :]


def read_imdb(folder: Path, size: RowsSize, *, mislabelled: float = 0.0) -> Rows:
    """Read reviews, positive and negative in turn as far as both last.

    `mislabelled`: the share of the training rows, the first ones, that get the wrong label.
    """
    train = _balanced(read_jsonl(folder / TRAIN))[: size.train]
    test = _balanced(read_jsonl(folder / TEST))[: size.test]
    wrong = round(mislabelled * len(train))
    return Rows(
        train=tuple(
            review(row["text"], 1 - row["label"] if i < wrong else row["label"], f"train {i}", size.words)
            for i, row in enumerate(train)
        ),
        test=tuple(review(row["text"], row["label"], f"test {i}", size.words) for i, row in enumerate(test)),
    )


def review(text: str, label: int, name: str, words: int) -> Example:
    """A review as prompt and completion, the other label as the wrong answer."""
    shown = " ".join(re.sub(r"<[^>]*>", " ", text).split()[:words])
    row = {
        "id": name,
        "prompt": f"Review: {shown}\nSentiment:",
        "completion": LABELS[label],
        "perturbed_answer": [LABELS[1 - label]],
    }
    return parse_row(row, source=f"IMDB {name}", line=1)


def running_text(rows: Sequence[Example]) -> tuple[Example, ...]:
    """The texts alone, for the loss of plain language modelling: prompts without their first word and last line."""
    texts = [str(row.prompt).partition(":")[2].rpartition("\n")[0].strip() for row in rows]
    return tuple(
        parse_row({"text": text}, source=f"text of {row.id}", line=1) for text, row in zip(texts, rows, strict=True)
    )


def _balanced(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_label = [[row for row in rows if row["label"] == label] for label in (0, 1)]
    return [row for pair in zip(*by_label, strict=False) for row in pair]
