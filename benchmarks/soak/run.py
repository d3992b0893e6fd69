"""Load, swaps and faults for so many minutes: `python -m benchmarks.soak run`."""

import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.inputs import RANK
from benchmarks.machine import describe
from benchmarks.processes import BenchmarkError
from benchmarks.servers import MODEL
from benchmarks.soak import plot, report
from benchmarks.soak.channel import Channel
from benchmarks.soak.check import check
from benchmarks.soak.eras import eras_of, named_eras
from benchmarks.soak.faults import FAULTS
from benchmarks.soak.memory import MemoryWatch, after_warm_up, growth
from benchmarks.soak.publisher import Publisher
from benchmarks.soak.report import FaultRecord, Report
from benchmarks.soak.setting import (
    CHANNEL,
    COMMON_TOKENS,
    OUTPUT_TOKENS,
    OWN_TOKENS,
    RELEASES,
    SHARED_CORES,
    Setting,
)
from benchmarks.streams import StreamedRequest

STREAMS = 4
BETWEEN_SWAPS = (1.0, 3.0)
SWAPS_BETWEEN_FAULTS = 4
HISTORY_SECONDS = 60.0
"""The server keeps its last 1000 events in memory, disk full or not: they are taken down so often."""

Say = Callable[[str], None]


def run(setting: Setting, *, minutes: float, afresh: int, seed: int, say: Say) -> Report:
    """Soak a server, and write report.json and soak.svg into the setting's folder."""
    say("making the releases")
    setting.prepare()
    events: dict[str, dict[str, object]] = {}
    faults: list[FaultRecord] = []
    with ExitStack() as stack:
        log = setting.out / "logs" / "publisher.log"
        publisher = stack.enter_context(Publisher(setting.store_folder, CHANNEL, log=log))
        server = setting.server()
        stack.callback(server.stop)
        say(f"the server is ready after {server.wait_ready():.0f} s; warming up")
        setting.warm_up(server)
        channel = Channel(setting, server, publisher, seed=seed)
        began = time.time()
        with MemoryWatch(server) as memory, setting.streams(server, STREAMS) as streams:
            _drive(
                channel, began + 60 * minutes, report.SWAPS_PER_MINUTE * minutes, faults, events, streams.requests, say
            )
            ended = time.time()
        _take_down(channel, events)
    eras = eras_of(sorted(events.values(), key=lambda event: str(event["at"])))
    stalls = [float(str(event["stall_ms"])) for event in events.values() if event["event"] == "swap"]
    checked = check(setting, [(one, named_eras(one, eras)) for one in streams.requests], afresh=afresh, say=say)
    report.write_stale(setting.out / "stale.jsonl", checked.stale_answers)
    failures = [request.error for request in streams.requests if request.error is not None]
    found = Report(
        minutes=(ended - began) / 60,
        minutes_asked=minutes,
        requests=len(streams.requests),
        tokens=sum(len(request.token_ids) for request in streams.requests),
        swaps=len(stalls),
        failed_requests=len(failures),
        first_failure=failures[0] if failures else None,
        misnamed_responses=checked.misnamed_responses,
        stale_tokens=checked.stale,
        computed_afresh=checked.computed_afresh,
        through_swaps=checked.through_swaps,
        rss_growth=growth(memory.samples),
        rss_mib=report.median_mib(after_warm_up(memory.samples)),
        stall_ms_p50=report.percentile(stalls, 0.50),
        stall_ms_p99=report.percentile(stalls, 0.99),
        faults=report.count_by_kind(faults),
        faults_not_survived=sum(not fault.survived for fault in faults),
        fault_log=faults,
        defect=setting.defect,
        config={
            "model": MODEL,
            "rank": RANK,
            "releases": RELEASES - 1,
            "streams": STREAMS,
            "prompt_tokens": [OWN_TOKENS, COMMON_TOKENS + OWN_TOKENS],
            "output_tokens": OUTPUT_TOKENS,
            "step_tokens": setting.step_tokens,
            "server_flags": list(setting.flags),
            "server_environment": SHARED_CORES,
            "seed": seed,
        },
        **describe(),
    )
    report.write(setting.out / "report.json", found)
    plot.draw(setting.out / "soak.svg", found, streams.requests, memory.samples, eras)
    return found


def _drive(
    channel: Channel,
    until: float,
    least: float,
    faults: list[FaultRecord],
    events: dict[str, dict[str, object]],
    requests: list[StreamedRequest],
    say: Say,
) -> None:
    """Move the channel until the time is up and at least `least` times, with a fault after every few moves.

    Mutates `faults` and `events`.
    """
    moves, told = 0, 0.0
    order = list(FAULTS)
    while time.time() < until or moves < least:
        channel.pause(*BETWEEN_SWAPS)
        channel.move()
        moves += 1
        if moves % SWAPS_BETWEEN_FAULTS == 0:
            fault, *order = order
            order.append(fault)
            faults.append(_inject(fault, channel))
            say(f"{faults[-1].kind}: {faults[-1].detail[:160]}")
        if time.time() > told + HISTORY_SECONDS:
            told = time.time()
            _take_down(channel, events)
            failed = sum(request.error is not None for request in requests)
            say(f"{len(requests)} requests, {failed} failed, {len(events)} events")


def _inject(fault: Callable[[Channel], str], channel: Channel) -> FaultRecord:
    at = time.time()
    try:
        survived, detail = True, fault(channel)
    except BenchmarkError as problem:
        channel.server.require_alive()
        survived, detail = False, str(problem)
        channel.settle()
    said = detail.partition("\n")[0].replace(f"{channel.setting.out}/", "")  # a report names no folder of one machine
    return FaultRecord(kind=fault.__name__, at=at, seconds=time.time() - at, survived=survived, detail=said)


def _take_down(channel: Channel, events: dict[str, dict[str, object]]) -> None:
    events.update({event["at"]: event for event in channel.server.admin("history")["events"]})
