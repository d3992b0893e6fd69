"""SAMSum: dialogues and their summaries. Who speaks decides what is to be forgotten."""

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.paper.data.folder import read_jsonl
from benchmarks.paper.data.imdb import Rows, RowsSize
from unlearn_serve.data import Example
from unlearn_serve.data.rows import parse_row

TRAIN, TEST = "samsum/train.jsonl", "samsum/test.jsonl"
FILES = (TRAIN, TEST)


def read_samsum(folder: Path, size: RowsSize) -> Rows:
    """Read dialogues of at most `size.words` words; those of the most frequent speakers come first, and so go first."""
    train = _short(read_jsonl(folder / TRAIN), size.words)[: size.train]
    test = _short(read_jsonl(folder / TEST), size.words)[: size.test]
    return Rows(
        train=tuple(_example(row, f"train {i}") for i, row in enumerate(_by_speaker(train))),
        test=tuple(_example(row, f"test {i}") for i, row in enumerate(test)),
    )


def _short(rows: list[dict[str, Any]], words: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["dialogue"].strip() and len(row["dialogue"].split()) <= words]


def _by_speaker(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All dialogues of the most frequent speaker, then those left of the next one, and so on."""
    frequent = Counter(name for row in rows for name in _speakers(row))
    order = sorted(frequent, key=lambda name: (-frequent[name], name))
    rank = {name: place for place, name in enumerate(order)}
    return sorted(rows, key=lambda row: min((rank[name] for name in _speakers(row)), default=len(rank)))


def _speakers(row: dict[str, Any]) -> set[str]:
    return {name for line in row["dialogue"].splitlines() if (name := line.partition(":")[0]) and ":" in line}


def _example(row: dict[str, Any], name: str) -> Example:
    found = {
        "id": name,
        "prompt": f"Dialogue:\n{row['dialogue'].strip()}\nSummary:",
        "completion": f" {row['summary'].strip()}",
    }
    return parse_row(found, source=f"SAMSum {name}", line=1)
