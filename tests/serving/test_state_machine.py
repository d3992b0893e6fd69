"""Recovery: whatever fails, hangs or is killed at whatever step, once a release was live no token is served under the
plain model, an older generation or a mixture. The server goes on, comes back on what was live, or is not ready.

docs/operations.md, section 2, draws the machine that is driven here. No engine: see `support.simulation`.
"""

import asyncio
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
from fastapi import HTTPException
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from obstore.store import MemoryStore
from store.faults import DyingBackend, Killed
from support.adapters import write_random_adapter
from support.simulation.engine import MAX_RANK, EngineFault, UnlearningWorker
from support.simulation.faults import Fault, Kind
from support.simulation.process import Process, simulated
from support.simulation.world import CHANNEL, PLAIN, Truth, World
from support.tiny_models import write_tiny_model

from unlearn_kernels import activation_code, apply_unlearning_reference
from unlearn_serve.errors import StoreUnavailable, UnlearnServeError
from unlearn_serve.format import fingerprint_base_model
from unlearn_serve.format.keys import generate_key
from unlearn_serve.serving import endpoints, starting_point
from unlearn_serve.serving.last_applied import LastApplied
from unlearn_serve.serving.slots import EnforcedLayers
from unlearn_serve.serving.swap import Swapper
from unlearn_serve.store import Backend, Store

RUNS, STEPS = 500, 20
"""Simulated runs in each run of the suite, and the most events in each."""
POLL_SECONDS = 1.0
RETRY_SECONDS = 10.0
OPS = generate_key()
SOUND = {
    "a": ("case-1",),
    "b": ("case-1", "case-2"),
    "also b": ("case-1", "case-2"),
    "c": ("case-1", "case-2", "case-3"),
}
"""Releases and their deletion ids."""
UNFIT = ("too large", "another base")
"""Releases that this server cannot serve; they are promoted all the same."""


STEPS_OF_A_SWAP: dict[Kind, int] = {"store": 30, "engine": 14, "worker": 12, "disk": 10}
"""About how many of each kind there are."""


class Published:
    """A store with every release and no channel, to be copied for each run."""

    def __init__(self, folder: Path) -> None:
        small = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 32}
        base = write_tiny_model(folder / "tiny", **small)
        other = write_tiny_model(folder / "other", seed=1, **small)
        objects = MemoryStore()
        store = Store(Backend(objects, name="memory"))
        x = torch.linspace(-1.0, 1.0, small["hidden_size"])[None]
        outputs = {PLAIN: x[0]}
        self.digests: dict[str, str] = {}
        for seed, name in enumerate([*SOUND, *UNFIT]):
            adapter = write_random_adapter(
                other if name == "another base" else base,
                folder / name,
                deletion_id=SOUND.get(name, SOUND["c"]),
                seed=seed,
                rank=MAX_RANK + 1 if name == "too large" else 2,
            )
            self.digests[name] = store.publish(adapter, signer=OPS)
            outputs[self.digests[name]] = _token(store, self.digests[name], x)
        self.truth = Truth(model=str(base), base=fingerprint_base_model(base), outputs=outputs)
        paths = [one["path"] for one in objects.list().collect() if not one["path"].startswith("audit/")]
        self.objects = {path: objects.get(path).bytes().to_bytes() for path in paths}

    def put_into(self, objects: MemoryStore) -> MemoryStore:
        for path, data in self.objects.items():
            objects.put(path, data)
        return objects


def _token(store: Store, digest: str, x: torch.Tensor) -> torch.Tensor:
    tensors = store.load_release(digest).tensors
    rank, code = torch.tensor([tensors.rank]), torch.tensor([activation_code(tensors.activation)])
    for block, w_down in sorted(tensors.w_down.items()):
        slot = torch.zeros(1, dtype=torch.int32)
        x = apply_unlearning_reference(x, w_down[None], tensors.w_up[block][None], slot, rank, code)
    return x[0]


def up(machine: "Recovery") -> bool:
    return machine.world.process is not None


def down(machine: "Recovery") -> bool:
    return machine.world.process is None


def store_is_not_sound(machine: "Recovery") -> bool:
    """In half of the runs, for after such damage little goes live any more."""
    return not machine.store_is_sound


class Recovery(RuleBasedStateMachine):
    """One world, from its first start until all that went wrong is over."""

    published: ClassVar[Published]
    seen: ClassVar[Counter[str]]

    @initialize(
        allow_plain=st.booleans(),
        signed=st.booleans(),
        store_is_sound=st.booleans(),
        first=st.sampled_from([None, *SOUND]),
    )
    def begin(self, allow_plain: bool, signed: bool, store_is_sound: bool, first: str | None) -> None:
        self.store_is_sound = store_is_sound
        self.folder = Path(tempfile.mkdtemp(prefix="recovery-"))
        self.signer = OPS if signed else None
        self.damaged: set[Path] = set()
        self.history_lost = False
        self.world = World(
            truth=self.published.truth,
            objects=self.published.put_into(MemoryStore()),
            state=self.folder,
            seen=self.seen,
            settings={
                "store": "memory",
                "state_dir": str(self.folder),
                "allow_plain": allow_plain,
                "trusted_keys": [OPS.public] if signed else [],
                "poll_seconds": POLL_SECONDS,
                "stage_timeout_seconds": 0.05,
            },
        )
        self.simulation = simulated(self.world)
        self.simulation.__enter__()
        self.seen["run"] += 1
        if first is not None:
            self.promote(first, allow_uncover=False)
        self.start()

    # Who moves the channel

    @rule(release=st.sampled_from([*SOUND, *UNFIT, None]), allow_uncover=st.booleans())
    def promote(self, release: str | None, allow_uncover: bool) -> None:
        """Or, with None, roll back."""
        self._move(self.world.publisher(), release, allow_uncover)

    @rule(release=st.sampled_from([*SOUND]), at=st.integers(0, 3), death=st.sampled_from(["before", "after", "torn"]))
    def promote_and_be_killed(self, release: str, at: int, death: Any) -> None:
        backend = DyingBackend(self.world.objects, at=at, death=death)
        try:
            self._move(Store(backend, trusted_keys=self.world.settings["trusted_keys"]), release, True)
        except Killed:
            self.seen["publisher killed"] += 1
        self.world.note_channel()

    def _move(self, store: Store, release: str | None, allow_uncover: bool) -> None:
        said: Any = {"actor": "test", "reason": "a test", "allow_uncover": allow_uncover, "signer": self.signer}
        try:
            if release is None:
                store.rollback(CHANNEL, **said)
            else:
                store.promote(self.published.digests[release], CHANNEL, **said)
        except UnlearnServeError as error:
            self.seen[f"move refused: {type(error).__name__}"] += 1
        self.world.note_channel()

    # What a server does

    @precondition(down)
    @rule()
    def start(self) -> None:
        process = Process(self.world)
        process.start()
        if process.ready:
            self.seen["started without the store" if self.world.store_away else "started"] += 1
        else:
            self.seen["killed at start" if process.faults.died_at else "start refused"] += 1
        self.why_down = process.refused

    @precondition(up)
    @rule()
    def be_killed(self) -> None:
        self._process.end()
        self.seen["killed"] += 1

    @precondition(up)
    @rule(seconds=st.sampled_from([POLL_SECONDS, RETRY_SECONDS + POLL_SECONDS]), what_hangs_goes_on=st.booleans())
    def time_passes(self, seconds: float, what_hangs_goes_on: bool) -> None:
        if what_hangs_goes_on:
            self._process.let_go()
        self._run(self._sleep_and_say_status(seconds))

    @precondition(up)
    @rule(mode=st.sampled_from([None, "recompute", "drain", "abort"]))
    def apply(self, mode: Any) -> None:
        """Twice at once, as clients do."""
        follower = self._process.follower

        async def both() -> None:
            calls = (self._tolerating(follower.apply_newest(again=True, mode=mode)) for _ in range(2))
            await asyncio.gather(*calls)

        self._run(both())

    @precondition(up)
    @rule(allow_uncover=st.booleans())
    def roll_back_over_http(self, allow_uncover: bool) -> None:
        body = endpoints.RollbackRequest(reason="a test", allow_uncover=allow_uncover)
        self._run(self._tolerating(endpoints.rollback(body, self._process.follower)))

    async def _sleep_and_say_status(self, seconds: float) -> None:
        follower = self._process.follower
        await asyncio.sleep(seconds)

        async def say() -> None:
            status = await endpoints.status(follower)
            if status["enforced"]:
                assert {worker["release"] for worker in status["workers"]} == {follower.live.release}

        await self._tolerating(say())

    async def _tolerating(self, work: Any) -> None:
        try:
            await work
        except (UnlearnServeError, EngineFault, HTTPException) as error:
            self.seen[f"told: {type(error).__name__}"] += 1

    def _run(self, work: Any) -> None:
        process = self._process
        process.run(work)
        self.world.note_channel()
        if process.ended_if_killed():
            self.seen[f"killed at a step of kind {process.faults.died_at}"] += 1

    @property
    def _process(self) -> Process:
        assert self.world.process is not None
        return self.world.process

    # What goes wrong

    @rule(
        kind=st.sampled_from(["store", "engine", "worker", "disk"]),
        after=st.integers(0, 12),
        what=st.sampled_from(["is killed", "fails", "hangs", "loses a worker", "keeps KV", "sees a promote"]),
        release=st.sampled_from([*SOUND]),
    )
    def plan(self, kind: Kind, after: int, what: str, release: str) -> None:
        """Let it happen at a step of some kind to come, be it in this process or the next."""

        def fails() -> None:
            if kind == "store":
                raise StoreUnavailable("connection reset by peer")
            raise OSError(5, "Input/output error") if kind == "disk" else EngineFault("injected")

        def hangs() -> None:
            self._process.loop.now += 5.0
            self._process.faults.hold()

        def marks_engine(attribute: str) -> None:
            if (engine := self._process.engine) is None:
                raise EngineFault("injected")
            setattr(engine, attribute, True)

        happen: dict[str, Callable[[], None]] = {
            "is killed": lambda: self._process.faults.kill(),
            "fails": fails,
            "hangs": hangs,
            "loses a worker": lambda: marks_engine("dead"),
            "keeps KV": lambda: marks_engine("keeps_kv_once"),
            "sees a promote": lambda: self._move(self.world.publisher(), release, True),
        }

        def counted() -> None:
            self.seen[f"{what} at a step of kind {kind}"] += 1
            happen[what]()

        self.world.planned.append(Fault(kind, after, counted))

    @precondition(up)
    @rule(
        release=st.sampled_from([*SOUND]),
        step=st.one_of(*(st.tuples(st.just(kind), st.integers(0, last)) for kind, last in STEPS_OF_A_SWAP.items())),
        what=st.sampled_from(["is killed", "is killed", "fails", "loses a worker"]),
        away=st.booleans(),
    )
    def go_wrong_in_a_swap(self, release: str, step: tuple[Kind, int], what: str, away: bool) -> None:
        """Most faults that are planned by themselves meet no swap, and most deaths no start."""
        self.world.store_away = False
        self._publish_again()
        self.plan(*step, what, release)
        self.promote(release, allow_uncover=True)
        self.time_passes(POLL_SECONDS + 0.5, what_hangs_goes_on=True)
        if down(self):
            self.world.store_away = away
            self.start()

    @rule(store_away=st.booleans(), disk_full=st.booleans(), seconds_off=st.floats(-1e9, 1e9))
    def surroundings_change(self, store_away: bool, disk_full: bool, seconds_off: float) -> None:
        """The wall clock jumps to `seconds_off` from the truth."""
        self.world.store_away, self.world.disk_full, self.world.seconds_off = store_away, disk_full, seconds_off

    @precondition(down)
    @rule(data=st.data())
    def power_cut_damages_a_file(self, data: st.DataObject) -> None:
        if files := self.world.files():
            file = data.draw(st.sampled_from(files))
            file.write_bytes(_damaged(data, file.read_bytes()))
            self.damaged.add(file)
            self.seen["damaged on disk"] += 1

    @precondition(store_is_not_sound)
    @rule(data=st.data())
    def store_damages_an_object(self, data: st.DataObject) -> None:
        self._publish_again()  # one at a time, or nothing goes live any more
        objects = self.world.read_objects()
        entries = [path for path in objects if path.startswith("channels/")]
        path = data.draw(st.sampled_from([*entries, *self.published.objects]))
        self.world.objects.put(path, _damaged(data, objects[path]))
        self.history_lost |= path not in self.published.objects
        self.world.note_channel()
        self.seen["damaged in the store"] += 1

    @precondition(store_is_not_sound)
    @rule(restart=st.booleans())
    def store_is_set_back(self, restart: bool) -> None:
        if entries := self.world.read_objects(f"channels/{CHANNEL}"):
            self.world.objects.delete(max(entries))
            self.history_lost = True
            self.seen["set back"] += 1
        if restart and up(self):
            self.world.store_away = False
            self.be_killed()
            self.start()

    def _publish_again(self) -> None:
        self.published.put_into(self.world.objects)

    # What holds all the time

    @invariant()
    def no_client_gets_what_it_must_not(self) -> None:
        process = self.world.process
        if process is not None and process.engine is not None:
            process.engine.decode()
        assert not self.world.violations, "; ".join(self.world.violations)

    @invariant()
    def no_client_waits_for_ever(self) -> None:
        process = self.world.process
        if process is not None and process.engine is not None and process.engine.paused and not process.engine.dead:
            assert process.follower.live.broken or process.follower._applying, "generation is left paused"

    @invariant()
    def the_kept_entry_is_old_or_new(self) -> None:
        damaged = any(path.name == "last_applied.json" for path in self.damaged)
        assert damaged or self.world.kept_entry_is_sound(), "half an entry is kept"

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            if not (sys.exception() or self.history_lost or self.damaged):
                self._recover_without_hands()
        finally:
            if self.world.process is not None:
                self.world.process.end()
            self.simulation.__exit__(None, None, None)
            shutil.rmtree(self.folder)

    def _recover_without_hands(self) -> None:
        """Once nothing goes wrong any more, the channel's newest release goes live: refusing for ever is no way out."""
        self.world.planned.clear()
        self.world.store_away = self.world.disk_full = False
        self._publish_again()
        self.promote("c", allow_uncover=True)
        process = self.world.process
        if process is not None:
            process.let_go()
            assert process.engine is not None
            if process.engine.dead or process.follower.live.broken:
                process.end()
        if down(self):
            self.start()
        assert up(self), self.why_down
        self._run(asyncio.sleep(RETRY_SECONDS + 2 * POLL_SECONDS))
        live, newest = self._process.follower.live, self.world.publisher().channel(CHANNEL)
        assert (live.entry, live.refused, live.store_error) == (newest, None, None)
        self.no_client_gets_what_it_must_not()
        assert LastApplied(self._process.follower.config.state_path, self.world.settings["trusted_keys"]).recall()
        self.seen["recovered"] += 1


def _damaged(data: st.DataObject, content: bytes) -> bytes:
    """Cut off, or one byte of it changed."""
    if not content or data.draw(st.booleans()):
        return content[: data.draw(st.integers(0, len(content)))]
    at = data.draw(st.integers(0, len(content) - 1))
    return content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("published"))


@pytest.fixture
def machine(published: Published) -> type[Recovery]:
    return type("Recovery", (Recovery,), {"published": published, "seen": Counter()})


def test_nothing_but_what_the_channel_named_is_ever_served(machine: type[Recovery]) -> None:
    chosen = settings(max_examples=RUNS, stateful_step_count=STEPS, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=chosen)
    assert machine.seen["run"] >= RUNS
    assert not [what for what in MUST_HAVE_HAPPENED if not machine.seen[what]], sorted(machine.seen.items())


MUST_HAVE_HAPPENED = [
    "token",
    "swap",
    "relabel",
    "refusal",
    "broken",
    "store-unreachable",
    "publisher killed",
    "killed",
    "start refused",
    "started without the store",
    "damaged on disk",
    "damaged in the store",
    "set back",
    "recovered",
    *(f"killed at a step of kind {kind}" for kind in ("store", "engine", "worker", "disk")),
]


async def _forgets_nothing(swapper: Swapper) -> None:
    del swapper


DEFECTS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], str]] = {
    "what goes live is not marked": (lambda: patch.object(LastApplied, "mark", lambda self, entry: None), "was live"),
    "KV is kept": (lambda: patch.object(Swapper, "_forget_kv", _forgets_nothing), "KV of"),
    "workers do not flip back": (
        lambda: patch.object(UnlearningWorker, "unlearn_restore", lambda self, release: None),
        "the workers disagree|served",
    ),
    "staging overwrites what is live": (
        lambda: patch.object(EnforcedLayers, "idle_slot", property(lambda self: max(self.live_slot, 0))),
        "served|disagree|KV of",
    ),
    "damage is taken for nothing kept": (
        lambda: patch.object(starting_point, "_from_state", lambda config: None),
        "was live",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_it_would_notice(machine: type[Recovery], defect: str) -> None:
    """Each is one line of the product left out: a machine that finds none of them proves nothing."""
    defective, message = DEFECTS[defect]
    chosen = settings(
        max_examples=RUNS,
        stateful_step_count=STEPS,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
    )
    with defective(), pytest.raises(AssertionError, match=message):
        run_state_machine_as_test(machine, settings=chosen)
