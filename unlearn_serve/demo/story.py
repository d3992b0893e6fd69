"""The story: two deletion requests go live on a running server, fused into one release, and back again."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from unlearn_serve.demo import checks
from unlearn_serve.demo.bank import MAX_TOKENS
from unlearn_serve.demo.checkpoint import MODEL_NAME, ensure_checkpoint
from unlearn_serve.demo.knowledge import known_questions
from unlearn_serve.demo.phases import Phase, Scorer
from unlearn_serve.demo.progress import console
from unlearn_serve.demo.report import Check, Report, Step, Swap, side_by_side
from unlearn_serve.demo.server import CHANNEL, ENVIRONMENT, Server
from unlearn_serve.demo.stream import BUSY_BEAT, FRUGAL_BEAT, Stream, StreamedRequest
from unlearn_serve.errors import UnlearnServeError

STREAMS = 4
DELETION_IDS = ("case-17", "case-18")
AROUND_SWAP_SECONDS = 4.0
"""The stream runs without rest for so long before and after each swap."""

GUARD = ("--alpha", "12", "--retain-tolerance", "0.003")
"""Three times the weight on what must stay, and training goes on until it moves a third as far as by default.

Its 72 rows stand for all that the model knows of other people. At the defaults training ends as soon as the facts are
gone, and 5 of 40 answers about people that it never saw were gone as well on one machine. These settings are the best
of five by those very 40 answers. Tried with the two sets of people exchanged, they lost none and one of 48, and so did
a tolerance of 0.002 and an alpha of 8: little hangs on which of them it is.
"""

BEFORE, FIRST, FUSED, ROLLED_BACK = "before", "first live", "both live", "rolled back"
OWN_FOLDERS = ("store", "state", "data", "adapter-1", "adapter-2", "adapter-fused")


@dataclass(kw_only=True)
class Story:
    """One run, from nothing to the report's content."""

    out: Path
    steps: list[Step] = field(default_factory=list)

    def play(self) -> tuple[Report, list[StreamedRequest]]:
        """Play the story and check what it must show.

        Raises:
            UnlearnServeError: a step failed, so that there is nothing to check.
        """
        started = time.time()
        self._clear()
        with self._step("making the model's checkpoint"):
            checkpoint = ensure_checkpoint()
        with self._step("asking the model what it knows"):
            knowledge = known_questions(checkpoint)
            data = knowledge.write(self.out / "data")
        for deletion_id, forget in zip(DELETION_IDS, knowledge.forget, strict=True):
            console.print(f"    deletion request {deletion_id}: forget {forget.subject}")
        scorer_sets = {name: rows for name, rows in knowledge.sets().items() if name != "retain_train"}

        with self._server(checkpoint) as server, Stream(url=server.url, knowledge=knowledge, streams=STREAMS) as stream:
            scorer = Scorer(url=server.url, checkpoint=checkpoint, sets=scorer_sets)
            pids_before = server.pids()
            with self._step("scoring the plain model"):
                before = scorer.score(name=BEFORE, release=checks.PLAIN, live_requests=(1, 2))

            first = self._learn(1, checkpoint, data)
            first_swap = self._move(server, stream, "promote", first)
            with self._step("scoring the first release"):
                first_live = scorer.score(name=FIRST, release=first, live_requests=(1,))

            self._learn(2, checkpoint, data)
            fused = self._fuse()
            fused_swap = self._move(server, stream, "promote", fused)
            with self._step("scoring the fused release"):
                both_live = scorer.score(name=FUSED, release=fused, live_requests=(1, 2))

            # The first release does not cover the second request: said on purpose, or the rollback is refused.
            rollback_swap = self._move(server, stream, "rollback", "--allow-uncover", "--reason", "the story goes back")
            with self._step("scoring after the rollback"):
                rolled_back = scorer.score(name=ROLLED_BACK, release=rollback_swap.release, live_requests=(1,))
            pids_after = server.pids()

        requests = stream.requests
        swaps = [first_swap, fused_swap, rollback_swap]
        phases = [before, first_live, both_live, rolled_back]
        rollback = checks.compare_answers(first_live, rolled_back)
        report = Report(
            model=MODEL_NAME,
            versions={name: metadata.version(name) for name in ("unlearn-serve", "torch", "transformers", "peft")},
            cpus=os.cpu_count() or 1,
            started=started,
            seconds=time.time() - started,
            deletion_requests={
                deletion_id: forget.subject for deletion_id, forget in zip(DELETION_IDS, knowledge.forget, strict=True)
            },
            server_pids_before=pids_before,
            server_pids_after=pids_after,
            requests_total=len(requests),
            requests_failed=sum(request.failed for request in requests),
            steps=self.steps,
            swaps=swaps,
            phases={phase.name: phase.scores for phase in phases},
            phase_releases={phase.name: phase.release for phase in phases},
            rollback=rollback,
            comparisons=side_by_side(phases),
            checks=[
                checks.no_request_failed(requests),
                checks.same_processes(pids_before, pids_after),
                checks.served_as_announced(requests, swaps),
                checks.known_before(before),
                *_phase_checks(before, first_live, (1,), first_swap),
                *_phase_checks(before, both_live, (1, 2), fused_swap),
                *_phase_checks(before, rolled_back, (1,), rollback_swap),
                checks.restored(rollback),
            ],
        )
        return report, requests

    def _clear(self) -> None:
        """Remove what an earlier run left in the output folder, and nothing else."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name in OWN_FOLDERS:
            shutil.rmtree(self.out / name, ignore_errors=True)
        (self.out / "store").mkdir()

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        console.print(f"[bold]{name}[/]")
        started = time.time()
        yield
        self.steps.append(Step(name=name, started=started, seconds=time.time() - started))
        console.print(f"    [dim]{self.steps[-1].seconds:.1f} s[/]")

    @contextmanager
    def _server(self, checkpoint: Path) -> Iterator[Server]:
        server = Server(model=checkpoint, store=self.out / "store", out=self.out)
        with self._step("starting the server"):
            server.start()
        try:
            yield server
        finally:
            server.stop()

    def _learn(self, number: int, checkpoint: Path, data: dict[str, Path]) -> str:
        """Train, evaluate and publish the adapter of one deletion request; return the release's digest."""
        adapter = self.out / f"adapter-{number}"
        forget, retain = data[f"forget{number}"], data["retain_train"]
        model = ("--model", checkpoint)
        with self._step(f"training the adapter of {DELETION_IDS[number - 1]}"):
            # The questions' answers are the model's own words: `knowledge` took them down.
            request = ("--deletion-id", DELETION_IDS[number - 1], "--no-own-answers")
            self._run("train", *model, "--forget", forget, "--retain", retain, *GUARD, *request, "--out", adapter)
        with self._step(f"evaluating the adapter of {DELETION_IDS[number - 1]}"):
            sets = ("--forget", forget, "--retain", data["retain"], "--holdout", data["general"])
            limits = ("--max-new-tokens", str(MAX_TOKENS))
            print(self._run("eval", *model, "--adapter", adapter, *sets, *limits), end="")
        with self._step(f"publishing the adapter of {DELETION_IDS[number - 1]}"):
            return self._run("publish", adapter, "--store", self.out / "store").split()[-1]

    def _fuse(self) -> str:
        """Fuse both adapters and publish the result; return the release's digest."""
        fused = self.out / "adapter-fused"
        with self._step("fusing and publishing both adapters"):
            self._run("fuse", self.out / "adapter-1", self.out / "adapter-2", "--out", fused)
            return self._run("publish", fused, "--store", self.out / "store").split()[-1]

    def _move(self, server: Server, stream: Stream, action: str, *arguments: str) -> Swap:
        """Move the channel and wait until the server serves what it names."""
        with self._step(f"{action}: the running server swaps"):
            stream.beat = BUSY_BEAT
            time.sleep(AROUND_SWAP_SECONDS)
            said = self._run(action, *arguments, "--channel", CHANNEL, "--store", self.out / "store")
            generation = int(said.split("generation ", 1)[1].split()[0])
            swap = Swap.from_history(server.wait_for_generation(generation))
            time.sleep(AROUND_SWAP_SECONDS)
            stream.beat = FRUGAL_BEAT
        console.print(f"    generation {generation} live {swap.publish_to_live_ms:.0f} ms after the channel moved")
        return swap

    def _run(self, command: str, *arguments: str | Path) -> str:
        """Run one `unlearn-serve` command in a process of its own; return what it prints on standard output."""
        line = [sys.executable, "-m", "unlearn_serve.cli.app", command, *map(str, arguments)]
        done = subprocess.run(
            line, env={**os.environ, **ENVIRONMENT}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        if done.returncode != 0:
            raise UnlearnServeError(
                f"`unlearn-serve {command}` ended with status {done.returncode}; see its message above"
            )
        return done.stdout


def _phase_checks(before: Phase, phase: Phase, live_requests: Sequence[int], swap: Swap) -> list[Check]:
    return [
        checks.scored_under(phase, swap.generation),
        checks.forgotten(phase, live_requests),
        checks.retained(before, phase),
    ]
