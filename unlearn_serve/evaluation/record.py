"""evaluation.json: every question with its answers before and after. It quotes the data, so it stays local."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unlearn_serve.data import Example
from unlearn_serve.evaluation.scoring import Answer
from unlearn_serve.format import DataRef, Evaluation
from unlearn_serve.format.atomic import write_atomically

RECORD_NAME = "evaluation.json"
SCHEMA = "unlearn-serve/evaluation/1"


@dataclass(frozen=True, kw_only=True)
class SetRecord:
    """One set's data file by digest, its examples, and the answers to each before and after."""

    data: DataRef
    examples: Sequence[Example]
    before: Sequence[Answer]
    after: Sequence[Answer]


def write_record(
    directory: Path, evaluation: Evaluation, records: Mapping[str, SetRecord], *, max_new_tokens: int
) -> Path:
    """Write `directory`/evaluation.json atomically, readable by its owner only, and return its path."""
    content = {
        "schema": SCHEMA,
        "max_new_tokens": max_new_tokens,
        **evaluation.model_dump(mode="json"),
        "sets": {name: _as_json(record) for name, record in records.items()},
    }
    path = directory / RECORD_NAME
    write_atomically(path, json.dumps(content, ensure_ascii=False, indent=2).encode(), mode=0o600)
    return path


def _as_json(record: SetRecord) -> dict[str, Any]:
    rows = zip(record.examples, record.before, record.after, strict=True)
    return {
        "data": record.data.model_dump(mode="json"),
        "samples": [
            {
                "id": example.id,
                "prompt": _prompt(example),
                "gold": example.answer,
                "before": asdict(before),
                "after": asdict(after),
            }
            for example, before, after in rows
        ],
    }


def _prompt(example: Example) -> Any:
    if example.prompt is None or isinstance(example.prompt, str):
        return example.prompt
    return [message.model_dump() for message in example.prompt]
