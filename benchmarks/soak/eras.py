"""Which release was live when, and what a response says of it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.streams import StreamedRequest

CLOCK_SLACK = 0.1
"""Seconds by which the client's and the server's view of one moment may differ."""

READING_LAG = 2.0
"""Seconds by which a client on busy cores may read a chunk after the server made it."""

AT_ONCE = 0.005
"""Seconds: chunks of a stream that a client reads at shorter intervals had been waiting for it; no step is as short."""

HELD_UP = 0.25
"""Seconds: chunks that come at longer intervals were held up, by a server or a client without a turn; no step is as
long."""

_FINGERPRINT = re.compile(r"unlearn-([0-9a-f]{16})-g([0-9]+)")


@dataclass(frozen=True, kw_only=True)
class Era:
    """The time in which one generation of the channel is live; Unix seconds."""

    generation: int
    release: str
    begins: float
    """No token of it is older: generation pauses here, for the flip."""
    ends: float = float("inf")
    """No token of it is made later: generation resumes here, under the next one."""


def eras_of(records: Iterable[Mapping[str, Any]]) -> list[Era]:
    """Return the eras that a server's audit records tell of, in order; a server that starts anew goes on in them."""
    eras: list[Era] = []
    for record in records:
        if record["event"] not in ("start", "swap", "relabel") or "release" not in record or record["release"] is None:
            continue
        at = datetime.fromisoformat(record["at"]).timestamp()
        begins = at - (record.get("stall_ms") or 0.0) / 1e3
        if eras:
            if eras[-1].generation == record["generation"]:
                continue  # started again on what was live
            before = eras[-1]
            eras[-1] = Era(generation=before.generation, release=before.release, begins=before.begins, ends=at)
        eras.append(Era(generation=record["generation"], release=record["release"], begins=begins))
    return eras


def read_records(audit_log: Path) -> list[dict[str, Any]]:
    """Return the records of a server's audit log; half a line of a server that was killed is passed over."""
    records = []
    for line in audit_log.read_text(errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def waiting_since(request: StreamedRequest) -> list[float]:
    """Return from when on each chunk may have been on its way: when chunks last came one by one, as they are made.

    An API server or a client that gets no turn for seconds passes on in one go what was made one by one; and one that
    gets a short turn in between passes on a single one of them, late.
    """
    since, last, waits = request.started, request.started, []
    for at, _ in request.tokens:
        if AT_ONCE <= at - last < HELD_UP:
            since = last
        waits.append(since)
        last = at
    return waits


def named_eras(request: StreamedRequest, eras: Sequence[Era]) -> list[Era]:
    """Return the eras that a response names: from its header's to its fingerprint's, and all in between.

    Where the response was cut before it named its end, all up to the one that was live then. Empty where what it names
    never was live, or not at that moment.
    """
    first = next((era for era in eras if (era.generation, era.release) == (request.generation, request.release)), None)
    if first is None or not request.tokens:
        return []
    begun, last = request.tokens[0][0], request.tokens[-1][0]
    if not _overlap(first, request.started - CLOCK_SLACK, begun + CLOCK_SLACK):
        return []
    ended = last if request.ended is None else request.ended
    if request.fingerprint is None:
        return [era for era in eras if first.begins <= era.begins <= ended + CLOCK_SLACK]
    if (named := _FINGERPRINT.fullmatch(request.fingerprint)) is None:
        return []
    final = next((era for era in eras if era.generation == int(named[2]) and era.release[:16] == named[1]), None)
    if final is None or final.generation < first.generation:
        return []
    made = min(waiting_since(request)[-1], max(request.started, last - READING_LAG))
    if not _overlap(final, made, ended + CLOCK_SLACK):
        return []
    return [era for era in eras if first.generation <= era.generation <= final.generation]


def _overlap(era: Era, begin: float, end: float) -> bool:
    return era.begins - CLOCK_SLACK <= end and era.ends + CLOCK_SLACK >= begin
