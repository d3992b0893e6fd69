"""When a release may be published: thresholds that an adapter's evaluation must meet, in a small YAML file.

schema: unlearn-serve/gate/1
thresholds:
  forget.probability: {max: 0.05}
  forget.extraction_strength: {max: 0.2}
  forget.samples: {min: 16}
  retain.accuracy: {min: 0.9, max_drop: 0.05}
  privacy_leak: {min: -0.2, max: 0.2}
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from unlearn_serve.errors import FormatError, GateError
from unlearn_serve.evaluation.measures import MODEL_MEASURES, SET_MEASURES
from unlearn_serve.format import Evaluation, GateVerdict, one_line_errors
from unlearn_serve.format.fields import MeasureName
from unlearn_serve.format.strict_json import StrictModel
from unlearn_serve.format.strict_yaml import read_yaml

MAX_GATE_BYTES = 2**16
_OF_A_SET = (*SET_MEASURES, "samples")


class Threshold(StrictModel):
    """Bounds on one measure after unlearning; at least one of them."""

    min: float | None = None
    max: float | None = None

    max_drop: float | None = None
    """How far it may lie below its value before unlearning."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None and self.max_drop is None:
            raise ValueError("expected min, max or max_drop, got none")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"expected min <= max, got {self.min:g} and {self.max:g}")
        return self


class _Document(StrictModel):
    schema_: Literal["unlearn-serve/gate/1"] = Field(alias="schema")
    thresholds: Annotated[dict[MeasureName, Threshold], Field(min_length=1)]

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.thresholds:
            of_set, dot, measure = name.rpartition(".")
            del of_set
            known = _OF_A_SET if dot else MODEL_MEASURES
            if measure not in known:
                shape = "SET.MEASURE with one of" if dot else "one of"
                raise ValueError(f"thresholds: expected {shape} {', '.join(known)}, got {name!r}")
        return self


@dataclass(frozen=True)
class Gate:
    """Thresholds by measure, and the SHA-256 of the file they are from."""

    source: str
    sha256: str
    thresholds: dict[str, Threshold]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a gate file.

        Raises:
            FormatError: it cannot be read, is not YAML, or breaks the schema; one line.
        """
        data, found = read_yaml(path, what="gate file", max_bytes=MAX_GATE_BYTES)
        with one_line_errors(str(path), FormatError):
            document = _Document.model_validate(found)
        return cls(str(path), hashlib.sha256(data).hexdigest(), document.thresholds)

    def failures(self, evaluation: Evaluation) -> list[str]:
        """Every threshold that the evaluation misses, each with what was expected and got; empty when it passes."""
        before, after = _values(evaluation, "before"), _values(evaluation, "after")
        return [
            f"{name}: {failure}"
            for name, threshold in self.thresholds.items()
            for failure in _misses(threshold, before.get(name), after.get(name))
        ]

    def judge(self, evaluation: Evaluation | None, *, what: str) -> Evaluation:
        """The evaluation with this gate's verdict, where it passes.

        Args:
            evaluation: of the adapter, as its manifest has it.
            what: names the adapter in messages.

        Raises:
            GateError: not evaluated with an adapter, or thresholds are missed; names each with expected and got.
        """
        if evaluation is None or not evaluation.after:
            raise GateError(
                f"{what}: expected an evaluation for {self.source} to judge, got none; run unlearn-serve eval"
            )
        if failures := self.failures(evaluation):
            raise GateError(f"{what}: {len(failures)} thresholds of {self.source} missed: {'; '.join(failures)}")
        return evaluation.model_copy(update={"gate": GateVerdict(sha256=self.sha256, passed=True)})


def _values(evaluation: Evaluation, phase: Literal["before", "after"]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, score in getattr(evaluation, phase).items():
        values |= {f"{name}.{measure}": float(value) for measure, value in score.model_dump().items()}
    if evaluation.measures is not None:
        values |= getattr(evaluation.measures, phase)
    return values


def _misses(threshold: Threshold, before: float | None, after: float | None) -> list[str]:
    """What of one threshold does not hold, each as expected and got."""
    least, most, drop = threshold.min, threshold.max, threshold.max_drop
    missed = []
    if least is not None and (after is None or not after >= least):
        missed.append(f"expected at least {least:g}, got {_shown(after)}")
    if most is not None and (after is None or not after <= most):
        missed.append(f"expected at most {most:g}, got {_shown(after)}")
    if drop is not None and (before is None or after is None or not before - after <= drop):
        missed.append(f"expected a drop of at most {drop:g}, got {_shown(before)} before and {_shown(after)} after")
    return missed


def _shown(value: float | None) -> str:
    return "no such score (evaluate with the sets it needs)" if value is None else f"{value:g}"
