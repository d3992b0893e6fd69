"""evaluation.json: every question with its answers and scores. It quotes the data, so it stays local."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from unlearn_serve.data import Example
from unlearn_serve.errors import DataError
from unlearn_serve.evaluation.measures import FORGET, LEAK_ATTACK, Measures, Reference
from unlearn_serve.evaluation.scores import Scores
from unlearn_serve.format import DataRef, Evaluation, Score
from unlearn_serve.format import Measures as ManifestMeasures
from unlearn_serve.format.atomic import write_atomically

RECORD_NAME = "evaluation.json"
SCHEMA = "unlearn-serve/evaluation/2"

Phase = Literal["before", "after", "live"]
"""The plain model, the model with the adapter, or a served model."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedSet:
    """One set: its data file by digest, its examples, and their scores in each phase."""

    data: DataRef
    examples: Sequence[Example]
    scores: Mapping[Phase, Sequence[Scores]]


@dataclass(frozen=True, kw_only=True)
class Results:
    """What an evaluation found.

    Attributes:
        model: what was evaluated: a checkpoint's folder name, or URL and name of a served model.
        release: digest under which a server answered; None elsewhere.
        max_new_tokens: longest greedy answer.
        seed: of the bootstrap.
        sets: by name.
        measures: by phase; each with its confidence interval.
    """

    model: str
    release: str | None
    max_new_tokens: int
    seed: int
    sets: Mapping[str, EvaluatedSet]
    measures: Mapping[Phase, Measures]

    @property
    def before(self) -> dict[str, Score]:
        """Accuracy and probability of each set under the plain model; empty where it was not asked."""
        return self.scores("before")

    @property
    def after(self) -> dict[str, Score]:
        """Accuracy and probability of each set with the adapter; empty where there was none."""
        return self.scores("after")

    def scores(self, phase: Phase) -> dict[str, Score]:
        """Accuracy and probability of each set in one phase."""
        found = self.measures.get(phase, {})
        return {
            name: Score(
                accuracy=found[f"{name}.accuracy"].value,
                probability=found[f"{name}.probability"].value,
                samples=found[f"{name}.accuracy"].samples,
            )
            for name in self.sets
            if found
        }

    def evaluation(self) -> Evaluation:
        """What a manifest says of it: no text."""
        further = {
            phase: {
                name: measure.value
                for name, measure in self.measures.get(phase, {}).items()
                if name.rpartition(".")[2] not in ("accuracy", "probability")
            }
            for phase in ("before", "after")
        }
        return Evaluation(before=self.before, after=self.after, measures=ManifestMeasures(**further))

    def as_json(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "release": self.release,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            **{
                phase: {name: score.model_dump(mode="json") for name, score in self.scores(phase).items()}
                for phase in self.measures
            },
            "measures": {
                phase: {name: measure.model_dump(mode="json") for name, measure in found.items()}
                for phase, found in self.measures.items()
            },
            "sets": {name: _set_as_json(found) for name, found in self.sets.items()},
        }


def write_record(path: Path, results: Results) -> Path:
    """Write `results` to `path` atomically, readable by its owner only, and return the path."""
    write_atomically(path, json.dumps(results.as_json(), ensure_ascii=False, indent=2).encode(), mode=0o600)
    return path


def read_reference(path: Path) -> Reference:
    """What the evaluation.json of a model that never saw the forget set says for comparison.

    Its last phase counts: "after" or "live" where there is one, else "before".

    Raises:
        DataError: it cannot be read, or is no evaluation.json.
    """
    try:
        found = json.loads(path.read_bytes())
        if found["schema"] != SCHEMA:
            raise ValueError(f"schema {found['schema']!r}")
        phase = next(name for name in ("live", "after", "before") if found["measures"].get(name))
        samples = found["sets"].get(FORGET, {"samples": []})["samples"]
        ratios = [sample[phase]["truth_ratio"] for sample in samples]
        area = found["measures"][phase].get(LEAK_ATTACK)
        return Reference(
            truth_ratios=[float(ratio) for ratio in ratios if ratio is not None],
            attack_area=None if area is None else float(area["value"]),
        )
    except OSError as problem:
        raise DataError(f"{path}: expected a readable evaluation.json, got: {problem.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, ValidationError) as problem:
        reason = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise DataError(f"{path}: expected what unlearn-serve eval --json writes ({SCHEMA}), got: {reason}") from None


def _set_as_json(found: EvaluatedSet) -> dict[str, Any]:
    return {
        "data": found.data.model_dump(mode="json"),
        "samples": [
            {
                "id": example.id,
                "prompt": prompt_as_json(example),
                "gold": example.answer,
                **{phase: scores[row].model_dump(mode="json") for phase, scores in found.scores.items()},
            }
            for row, example in enumerate(found.examples)
        ],
    }


def prompt_as_json(example: Example) -> Any:
    """A text, a list of messages, or None."""
    if example.prompt is None or isinstance(example.prompt, str):
        return example.prompt
    return [message.model_dump() for message in example.prompt]
