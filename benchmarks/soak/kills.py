"""kill -9, again and again, and what is live after each restart: `python -m benchmarks.soak kills`."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]  # ships no types

from benchmarks.inputs import RANK
from benchmarks.machine import describe
from benchmarks.processes import BenchmarkError
from benchmarks.servers import Server
from benchmarks.soak import report
from benchmarks.soak.channel import Channel
from benchmarks.soak.check import check
from benchmarks.soak.damages import DAMAGES
from benchmarks.soak.eras import Era, named_eras
from benchmarks.soak.publisher import Publisher
from benchmarks.soak.report import KillReport, Run
from benchmarks.soak.setting import CHANNEL, SHARED_CORES, Setting
from benchmarks.streams import StreamedRequest

STREAMS = 2
FIRST_TOKENS = 16
FIRST_CLIENTS = 4
LINGER_SECONDS = 30.0
"""What is left of a server whose one process was killed has so long to end by itself."""

PROCESSES = ("server", "engine core", "worker", "all")
MOMENTS = ("idle", "under load", "within a swap", "while it starts")
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class FirstAnswer:
    """One of the first answers after a restart."""

    request: StreamedRequest
    run: int
    allowed: frozenset[str]
    """Releases that it may be from."""


class Kills:
    """The runs of one call, one after the other on the same store and state."""

    def __init__(self, setting: Setting, publisher: Publisher, *, seed: int) -> None:
        self.cut: list[StreamedRequest] = []
        """What clients asked under load, most of it cut by a kill."""
        self.first: list[FirstAnswer] = []
        self._setting = setting
        self._publisher = publisher
        self._chance = random.Random(seed)
        self._channel: Channel | None = None
        self._server: Server | None = None
        """The one started last, ready or not."""

    def run(self, number: int) -> Run:
        """Kill once, start again, and look at the first tokens."""
        began = time.time()
        process = PROCESSES[number % len(PROCESSES)]
        moment = self._chance.choice(MOMENTS)
        damage = DAMAGES[(number + number // len(PROCESSES)) % len(DAMAGES)]  # with each process in turn
        channel = self._running(number)
        channel.move()
        before = {channel.status()["live"]["release"]}
        with self._load(channel) if moment != "idle" else nullcontext():
            if moment == "within a swap":
                entry = self._publisher.promote(channel.next_release())
                before.add(entry["release"])
                time.sleep(self._chance.uniform(0.0, 0.5))
            lingered = self._kill(channel, process)
        if process == "all" or moment == "while it starts":
            before.add(channel.first)  # the publisher's last order
        if moment == "while it starts":
            starting = Channel(self._setting, self._start(), self._publisher)
            time.sleep(self._chance.uniform(1.0, 20.0))
            lingered += self._kill(starting, "all")
        newest = self._setting.inputs.store.channel(CHANNEL).release
        # While the store is away the server knows what it has noted as applied, which a swap may not have come to.
        allowed = before | {newest} if damage.name.startswith("store away") else {newest}
        with damage.make(self._setting):
            server = self._start()
            ready = _becomes_ready(server)
            if ready:
                self._ask_first(server, number, allowed)
            release = server.admin("status")["live"]["release"] if ready else None
        self._channel = Channel(self._setting, server, self._publisher, seed=number) if ready else None
        return Run(
            killed=process,
            moment=moment,
            damage=damage.name,
            expected=damage.expected,
            got="ready" if ready else "refuses",
            release_before=newest,
            release_after=release,
            stale_tokens=0,  # until all are held against their releases
            lingered=lingered,
            seconds=time.time() - began,
        )

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.stop()

    def _start(self) -> Server:
        self._server = self._setting.server()
        return self._server

    def _running(self, number: int) -> Channel:
        """The server of the run before; where that refused to start, a new one, which must not now that all is well."""
        if self._channel is None:
            server = self._start()
            if not _becomes_ready(server):
                raise BenchmarkError(f"the server did not start although nothing was damaged; see {server.log}")
            self._channel = Channel(self._setting, server, self._publisher)
            newest = self._setting.inputs.store.channel(CHANNEL).release
            self._ask_first(server, max(0, number - 1), {newest})
        return self._channel

    @contextmanager
    def _load(self, channel: Channel) -> Iterator[None]:
        streams = self._setting.streams(channel.server, STREAMS)
        try:
            with streams:
                channel.wait_until(lambda: any(one.tokens for one in streams.requests), "a stream has begun")
                yield
        finally:
            self.cut += streams.requests

    def _kill(self, channel: Channel, process: str) -> list[str]:
        """Kill -9 one process of the server, or all and the publisher with them; returns what did not end after it."""
        group = channel.server.group()
        if process == "all":
            victims = group
            self._publisher.begin(do="promote", release=channel.first, allow_uncover=False)
            time.sleep(self._chance.uniform(0.0, 0.03))
            self._publisher.kill()
        elif process == "server":
            victims = [one for one in group if one.pid == channel.server.process.pid]
        else:
            prefix = "VLLM::EngineCore" if process == "engine core" else "VLLM::Worker"
            victims = [one for one in group if one.name().startswith(prefix)]
        if not victims:
            raise BenchmarkError(f"expected a process of the {process}, got none")
        if process == "all":  # also what it has started since the look at it
            with suppress(ProcessLookupError):
                os.killpg(channel.server.process.pid, signal.SIGKILL)
        _kill(victims)
        deadline = time.monotonic() + LINGER_SECONDS
        while (alive := [one for one in group if not _ended(one)]) and time.monotonic() < deadline:
            time.sleep(0.2)
        lingered = [one.name() for one in alive]
        _kill(alive)
        return lingered

    def _ask_first(self, server: Server, number: int, allowed: set[str]) -> None:
        """Ask as soon as the server is ready; the answers belong to run `number`."""
        with self._setting.streams(server, FIRST_CLIENTS, output_tokens=FIRST_TOKENS) as streams:
            deadline = time.monotonic() + 60
            while sum(one.ended is not None for one in streams.requests) < FIRST_CLIENTS:
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"no first answers in a minute; see {server.log}")
                time.sleep(0.1)
        self.first += [FirstAnswer(request=one, run=number, allowed=frozenset(allowed)) for one in streams.requests]


def run(setting: Setting, *, runs: int, afresh: int, seed: int, say: Say) -> KillReport:
    """Kill and start again so many times, and write kills.json into the setting's folder."""
    say("making the releases")
    setting.prepare()
    done: list[Run] = []
    with ExitStack() as stack:
        log = setting.out / "logs" / "publisher.log"
        publisher = stack.enter_context(Publisher(setting.store_folder, CHANNEL, log=log))
        kills = Kills(setting, publisher, seed=seed)
        stack.callback(kills.close)
        for number in range(runs):
            done.append(kills.run(number))
            one = done[-1]
            say(
                f"{number + 1}/{runs} {one.killed} killed {one.moment}, damage {one.damage}: {one.got} after "
                f"{one.seconds:.0f} s, {'as' if one.got == one.expected else 'NOT AS'} documented"
            )
    entries = setting.inputs.store.history(CHANNEL)
    # What a killed server had not noted yet may have been live: an entry's time is the earliest that it can have been.
    eras = [Era(generation=one.generation, release=one.release, begins=one.at.timestamp()) for one in entries]
    answers = [
        *(
            (one.request, named_eras(one.request, [era for era in eras if era.release in one.allowed]))
            for one in kills.first
        ),
        *((one, named_eras(one, eras)) for one in kills.cut),
    ]
    checked = check(setting, answers, afresh=afresh, say=say)
    report.write_stale(setting.out / "stale.jsonl", checked.stale_answers)
    for first, stale in zip(kills.first, checked.stale_by_answer, strict=False):
        # What a ready server does not answer is no answer from the release either.
        done[first.run].stale_tokens += stale + FIRST_TOKENS - len(first.request.token_ids)
    found = KillReport(
        kills=len(done),
        ready=sum(one.got == "ready" for one in done),
        refused=sum(one.got == "refuses" for one in done),
        unsound=sum(not one.sound for one in done),
        stale_tokens=checked.stale,
        first_tokens=sum(len(one.request.token_ids) for one in kills.first),
        by_process=dict(Counter(one.killed for one in done)),
        runs=done,
        config={
            "rank": RANK,
            "streams": STREAMS,
            "server_flags": list(setting.flags),
            "server_environment": SHARED_CORES,
            "seed": seed,
        },
        **describe(),
    )
    report.write(setting.out / "kills.json", found)
    return found


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _becomes_ready(server: Server) -> bool:
    """Wait until a server is ready, or has ended by itself with an error."""
    try:
        server.wait_ready()
    except BenchmarkError:
        status = server.process.poll()
        if status is None:
            server.stop()
            raise
        if status == 0:
            raise BenchmarkError(f"a server that refuses must say so by its status, got 0; see {server.log}") from None
        server.stop()
        return False
    return True
