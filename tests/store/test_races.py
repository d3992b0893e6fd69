"""C4: of several that move a channel at once, exactly one wins each generation; readers never see a step back."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from obstore.store import LocalStore, MemoryStore

from unlearn_serve.errors import ChannelConflict
from unlearn_serve.store import Backend, Store

ROUNDS = 10


def test_the_loser_learns_who_was_first(tmp_path: Path, adapters: list[Path]) -> None:
    """The other writer moves between this one's look at the channel and its put: the narrowest race, staged exactly."""
    store = Store.open(str(tmp_path), create=True)
    mine, theirs = store.publish(adapters[0]), store.publish(adapters[1])

    class SlowBackend(Backend):
        def create(self, path: str, data: bytes) -> bool:
            if path.startswith("channels/"):
                store.promote(theirs, "production", actor="somebody else")
            return super().create(path, data)

    slow = Store(SlowBackend(LocalStore(prefix=tmp_path), name="slow"))
    message = (
        f"channel 'production': somebody else made generation 1 first .promote of {theirs}.; nothing was changed: "
        "look at the channel and decide again"
    )
    with pytest.raises(ChannelConflict, match=message):
        slow.promote(mine, "production", actor="me")
    assert [entry.release for entry in store.history("production")] == [theirs]


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_threads(tmp_path: Path, adapters: list[Path], kind: str) -> None:
    objects = LocalStore(prefix=tmp_path) if kind == "folder" else MemoryStore()
    stores = [Store(Backend(objects, name=kind)) for _ in range(4)]
    digests = [stores[0].publish(adapter) for adapter in adapters]
    together = threading.Barrier(len(stores))

    def race(number: int) -> list[bool]:
        won = []
        for generation in range(ROUNDS):
            together.wait()
            try:
                stores[number].promote(
                    digests[number % 3], "production", expected_generation=generation, actor=f"thread {number}"
                )
                won.append(True)
            except ChannelConflict:
                won.append(False)
            together.wait()
        return won

    with ThreadPoolExecutor(len(stores)) as pool:
        won = list(pool.map(race, range(len(stores))))
    assert [sum(one) for one in zip(*won, strict=True)] == [1] * ROUNDS
    history = stores[0].history("production")
    assert [entry.generation for entry in history] == list(range(1, ROUNDS + 1))
    assert [entry.actor for entry in history] == [f"thread {column.index(True)}" for column in zip(*won, strict=True)]


def test_concurrent_publishers_of_one_release_all_succeed(tmp_path: Path, adapters: list[Path]) -> None:
    Store.open(str(tmp_path), create=True)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: Store.open(str(tmp_path)).publish(adapters[0]), range(8)))
    assert len(found) == 1
    assert Store.open(str(tmp_path)).verify() == []


RACER = """
import sys
from unlearn_serve.errors import ChannelConflict
from unlearn_serve.store import Store
url, digest, actor = sys.argv[1:]
store = Store.open(url)
print("ready", flush=True)
for line in sys.stdin:
    try:
        store.promote(digest, "production", expected_generation=int(line), actor=actor)
        print("won", flush=True)
    except ChannelConflict as error:
        print(error, flush=True)
"""


def test_two_processes(tmp_path: Path, adapters: list[Path]) -> None:
    store = Store.open(str(tmp_path), create=True)
    digests = [store.publish(adapters[0]), store.publish(adapters[1])]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), digest, f"process {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, digest in enumerate(digests)
    ]
    try:
        assert [say(racer) for racer in racers] == ["ready", "ready"]
        for generation in range(ROUNDS):
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write(f"{generation}\n")
                racer.stdin.flush()
            answers = [say(racer) for racer in racers]
            assert answers.count("won") == 1, answers
            winner = answers.index("won")
            assert answers[1 - winner].startswith("channel 'production': ")
            assert "nothing was changed: look at the channel and decide again" in answers[1 - winner]
            entry = store.channel("production")
            assert (entry.generation, entry.actor) == (generation + 1, f"process {winner}")
    finally:
        for racer in racers:
            racer.communicate()
    assert [racer.returncode for racer in racers] == [0, 0]


def say(racer: "subprocess.Popen[str]") -> str:
    assert racer.stdout is not None
    return racer.stdout.readline().strip()


def test_a_follower_never_sees_a_step_back(tmp_path: Path, adapters: list[Path]) -> None:
    store = Store.open(str(tmp_path), create=True)
    digests = [store.publish(adapter) for adapter in adapters]
    done = threading.Event()

    def follow() -> list[int]:
        reader, seen = Store.open(str(tmp_path)), [0]
        while not done.is_set() or reader.channel_after("production", seen[-1]):
            entry = reader.channel_after("production", seen[-1])
            if entry is not None:
                seen.append(entry.generation)
        return seen

    with ThreadPoolExecutor(2) as pool:
        followers = [pool.submit(follow) for _ in range(2)]
        for generation in range(20):
            store.promote(digests[generation % 3], "production", actor="writer")
        done.set()
        for seen in (follower.result() for follower in followers):
            assert seen == sorted(set(seen))
            assert seen[-1] == 20
