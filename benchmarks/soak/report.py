"""What a soak found: out/soak/report.json, held against its bars."""

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.bars import Bar
from benchmarks.soak.memory import Sample

SWAPS_PER_MINUTE = 10.0
"""Of the minutes asked for: a soak goes on until it has made them, however slow the machine."""

MOST_GROWTH = 0.02


class Strict(BaseModel):
    """No unknown fields, no other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FaultRecord(Strict):
    """One fault that was injected."""

    kind: str
    at: float
    """Unix seconds."""
    seconds: float
    """Until it was undone and the server had swapped again."""
    survived: bool
    """False where the server did not do what docs/operations.md says."""
    detail: str


class Report(Strict):
    """One soak under load."""

    minutes: float
    """How long it took."""
    minutes_asked: float | None = None
    """How long it was to take at least; None in reports of before it was written down, which took no longer."""
    requests: int = Field(ge=0)
    tokens: int = Field(ge=0)
    swaps: int = Field(ge=0)
    failed_requests: int = Field(ge=0)
    first_failure: str | None
    misnamed_responses: int = Field(ge=0)
    """Responses that name no release, or one that was not live then; all their tokens count as stale."""
    stale_tokens: int = Field(ge=0)
    """Tokens that are not from the releases that their response names."""
    computed_afresh: int = Field(ge=0)
    """Tokens that were also held against a server that never swapped (attribution.py); all were, against words."""
    through_swaps: int = Field(ge=0)
    """Responses whose tokens are from more than one release."""
    rss_growth: float | None
    """Growth of resident memory after the warm-up, as a share."""
    rss_mib: float
    """Resident memory after the warm-up, median."""
    stall_ms_p50: float
    stall_ms_p99: float
    faults: dict[str, int]
    """Faults that were injected, by kind."""
    faults_not_survived: int
    fault_log: list[FaultRecord]
    defect: str | None
    """What was seeded, if anything was."""
    machine: dict[str, Any]
    versions: dict[str, str]
    config: dict[str, Any]
    commit: str
    date: str

    def bars(self) -> list[Bar]:
        """The bars."""
        return [
            Bar(what="swaps under load", low=SWAPS_PER_MINUTE * (self.minutes_asked or self.minutes), got=self.swaps),
            Bar(what="failed requests", low=0, high=0, got=self.failed_requests),
            Bar(what="tokens not of the release named", low=0, high=0, got=self.stale_tokens),
            Bar(
                what="growth of resident memory",
                low=-1,
                high=MOST_GROWTH,
                got=self.rss_growth,
            ),
            Bar(what="faults not survived", low=0, high=0, got=self.faults_not_survived),
        ]


class Run(Strict):
    """One kill, and what came after."""

    killed: str
    """Which process."""
    moment: str
    damage: str
    """What was wrong with store or state at the restart."""
    expected: str
    """What docs/operations.md says of it: `ready` or `refuses`."""
    got: str
    release_before: str
    release_after: str | None
    stale_tokens: int
    """Of the first answers after the restart: tokens not from the release that was live before."""
    lingered: list[str]
    """Processes of the server that did not end by themselves within the time they were given."""
    seconds: float

    @property
    def sound(self) -> bool:
        """The same release is live, all tokens are from it, or the server refuses; as documented."""
        return self.got == self.expected and self.stale_tokens == 0


class KillReport(Strict):
    """All kills."""

    kills: int
    ready: int
    refused: int
    unsound: int
    stale_tokens: int
    """Also of answers that were cut by a kill."""
    first_tokens: int
    by_process: dict[str, int]
    runs: list[Run]
    machine: dict[str, Any]
    versions: dict[str, str]
    config: dict[str, Any]
    commit: str
    date: str

    def bars(self) -> list[Bar]:
        """The bars."""
        return [
            Bar(what="kills", low=30, got=self.kills),
            Bar(what="restarts on another release, or on none", low=0, high=0, got=self.unsound),
            Bar(what="tokens not of the release named", low=0, high=0, got=self.stale_tokens),
        ]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of all are at or below, by linear interpolation; 0 of none."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[round(100 * share) - 1]


def count_by_kind(faults: Sequence[FaultRecord]) -> dict[str, int]:
    """Return how many faults of each kind there were."""
    return dict(Counter(fault.kind for fault in faults))


def median_mib(samples: Sequence[Sample]) -> float:
    """Return the median of resident memory, 0 of none."""
    return statistics.median(sample.mib for sample in samples) if samples else 0.0


def write(path: Path, report: BaseModel) -> None:
    """Write a report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.model_dump_json(indent=1) + "\n")


def write_stale(path: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    """Write all that is known of answers with stale tokens, an answer a line; an empty file where there are none."""
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))


def shown(bars: Sequence[Bar]) -> str:
    """Return the bars as a table."""
    return "\n".join(
        f"{bar.what:44} {'-' if bar.got is None else f'{bar.got:10.4g}':>10}   "
        f"{bar.low:g} to {bar.high:g}   {bar.verdict}"
        for bar in bars
    )
