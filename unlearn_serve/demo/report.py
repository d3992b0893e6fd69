"""What a run of the demo found: the content of report.json."""

import dataclasses
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from unlearn_serve.demo.phases import Phase, Score
from unlearn_serve.demo.stream import StreamedRequest


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Swap(_Strict):
    """One swap, as the server recorded it."""

    release: str
    generation: int
    action: str
    deletion_ids: list[str]
    at: float
    """Unix seconds at which generation had resumed."""

    stage_ms: float
    """Reading, verifying and copying the release, while serving went on."""

    stall_ms: float
    """How long no token was generated."""

    publish_to_live_ms: float
    """From the channel's move until every worker served the release."""

    @classmethod
    def from_history(cls, record: dict[str, Any]) -> "Swap":
        """Read one record of GET /v1/unlearning/history."""
        kept = {name: record[name] for name in cls.model_fields if name != "at"}
        return cls(at=datetime.fromisoformat(record["at"]).timestamp(), **kept)


class Step(_Strict):
    """One step of the story."""

    name: str
    started: float
    """Unix seconds."""

    seconds: float


class Difference(_Strict):
    """A question that got another answer after the rollback than before, and how close the call was."""

    question: str
    before: str
    after: str
    gap: float | None
    """Larger of the two log-probability gaps between the first two tokens that differ; None where one of the tokens
    is not among the likeliest."""


class Rollback(_Strict):
    """The answers after the rollback against those of the same release before."""

    compared: int
    tolerance: float
    """Log-probability gap up to which two tokens count as a numeric tie."""

    largest_shift: float
    """Largest change in the log-probability of a generated token, over the parts of the answers that are equal."""

    differences: list[Difference]


class Comparison(_Strict):
    """One question and what the server answered to it, phase by phase."""

    kind: str
    question: str
    gold: str
    answers: dict[str, str]


class Check(_Strict):
    """One assertion of the story."""

    name: str
    ok: bool
    detail: str


class Report(_Strict):
    """Everything in report.json."""

    model: str
    versions: dict[str, str]
    cpus: int
    started: float
    seconds: float
    deletion_requests: dict[str, str]
    """Subject by deletion id."""

    server_pids_before: list[int]
    server_pids_after: list[int]
    requests_total: int
    requests_failed: int
    steps: list[Step]
    swaps: list[Swap]
    phases: dict[str, dict[str, Score]]
    """By phase, by set of questions: accuracy and probability."""

    phase_releases: dict[str, str]
    rollback: Rollback
    comparisons: list[Comparison]
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Tell whether every assertion held."""
        return all(check.ok for check in self.checks)

    def write(self, out: Path, requests: Sequence[StreamedRequest]) -> None:
        """Write report.json and, one streamed request a line, requests.jsonl into `out`."""
        (out / "report.json").write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        lines = [json.dumps(dataclasses.asdict(request), ensure_ascii=False) + "\n" for request in requests]
        (out / "requests.jsonl").write_text("".join(lines), encoding="utf-8")


def side_by_side(phases: Sequence[Phase]) -> list[Comparison]:
    """Line up the answers of all phases, question by question."""
    return [
        Comparison(
            kind=kind,
            question=answer.question,
            gold=answer.gold,
            answers={phase.name: phase.answers[kind][index].text for phase in phases},
        )
        for kind, answers in phases[0].answers.items()
        for index, answer in enumerate(answers)
    ]
