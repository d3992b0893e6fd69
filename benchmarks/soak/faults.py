"""Faults that a running server must survive without failing a request; each is real, and each is undone.

Every fault says what it saw, and raises where the server did not do what docs/operations.md says.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import BenchmarkError
from benchmarks.soak.breakage import away, no_room, slow_to_open, truncated
from benchmarks.soak.channel import Channel
from benchmarks.soak.publisher import Refused
from benchmarks.soak.setting import CHANNEL

WEIGHTS = "adapter_model.safetensors"
AWAY_SECONDS = (1.0, 3.0)
SLOW_SECONDS = 3.0
FROZEN_SECONDS = 2.0
SMALL_DISK_BYTES = 2**20


def corrupt_release(channel: Channel) -> str:
    """A release that is truncated at rest, after its promote was verified: refused; live once it is whole again."""
    release = _not_live(channel)
    with truncated(_weights_of(channel, release)):
        channel.write_entry(channel.next_entry(release))
        refused = channel.wait_until(lambda: channel.status()["refused"], "the truncated release is refused")
        if channel.status()["live"]["release"] == release:
            raise BenchmarkError("a truncated release is live")
    channel.settle()
    return str(refused)


def truncated_live_release(channel: Channel) -> str:
    """The release that is live is truncated in the store: it serves on; none can move back to it until it is whole."""
    live = channel.status()["live"]["release"]
    with truncated(_weights_of(channel, live)):
        channel.promote(_not_live(channel))
        said = _expect_refusal(lambda: channel.publisher.promote(live))
    channel.settle()
    return said


def torn_entry(channel: Channel) -> str:
    """The channel's next entry is cut off half way: told as a fault of the store; a later one takes its place."""
    entry = channel.next_entry(_not_live(channel))
    channel.write_entry(entry, entry.to_bytes()[: len(entry.to_bytes()) // 2])
    said = channel.wait_until(lambda: channel.status()["store_error"], "the torn entry is noticed")
    channel.settle()
    return str(said)


def store_away(channel: Channel) -> str:
    """The store's folder is gone for seconds: the server says so and serves on, publishers fail."""
    with away(channel.setting.store_folder):
        said = channel.wait_until(lambda: channel.status()["store_error"], "the store's absence is noticed")
        _expect_refusal(lambda: channel.publisher.promote(channel.first))
        channel.pause(*AWAY_SECONDS)
    channel.wait_until(lambda: channel.status()["store_error"] is None, "the store's return is noticed")
    channel.move()
    return str(said)


def slow_store(channel: Channel) -> str:
    """The store lets the server wait for seconds when it opens the release: it goes on serving, and goes live then."""
    release = _not_live(channel)
    entry = channel.next_entry(release)
    with slow_to_open(_weights_of(channel, release)):
        channel.write_entry(entry)
        time.sleep(SLOW_SECONDS)
        if channel.status()["live"]["generation"] == entry.generation:
            raise BenchmarkError("the release went live although it could not be read yet")
    status = channel.wait_live({"generation": entry.generation, "release": release})
    channel.settle()
    return f"staged in {status['last_swap']['stage_ms'] / 1e3:.1f} s"


def full_disk_of_server(channel: Channel) -> str:
    """The API server can write no byte to any file, neither state nor log: what is promoted goes live all the same."""
    with no_room(channel.server.process.pid, 0):
        channel.move()
    channel.move()
    return "a swap went live that could not be noted"


def full_disk_of_publisher(channel: Channel) -> str:
    """The publisher's disk is full in the middle of the weights: nothing becomes visible, and it can be done again."""
    adapter = channel.setting.adapters[-1]
    _remove_unused_releases(channel)
    with no_room(channel.publisher.process().process.pid, SMALL_DISK_BYTES):
        said = _expect_refusal(lambda: channel.publisher.publish(adapter))
    if {release.digest for release in channel.setting.inputs.store.releases()} - set(channel.setting.releases):
        raise BenchmarkError("half a release became visible")
    _publish_whole(channel, adapter)
    channel.move()
    return said


def killed_publisher(channel: Channel) -> str:
    """SIGKILL to the publisher within a publish or a promote: all of it happened or nothing; it can be done again."""
    publishes = channel.chance.random() < 0.5
    adapter, release = channel.setting.adapters[-1], _not_live(channel)
    newest = channel.setting.inputs.store.channel(CHANNEL).generation
    if publishes:
        _remove_unused_releases(channel)
        channel.publisher.begin(do="publish", adapter=str(adapter))
    else:
        channel.publisher.begin(do="promote", release=release, allow_uncover=False)
    channel.pause(0.0, 0.06)
    channel.publisher.kill()
    if publishes:
        _publish_whole(channel, adapter)
    moved = channel.setting.inputs.store.channel(CHANNEL)
    if moved.generation > newest:
        channel.wait_live({"generation": moved.generation, "release": release})
    channel.move()
    done = moved.generation > newest
    return f"killed within a {'publish' if publishes else 'promote'}{', which was complete' if done else ''}"


def frozen(channel: Channel) -> str:
    """A process of the server stands still for two seconds, as on a machine that is moved; then it goes on."""
    channel.pause(0.5, 1.0)  # or what was made before the last swap would be read as late as if made after it
    processes = {"worker": channel.status()["workers"][0]["pid"], "API server": channel.server.process.pid}
    name, pid = channel.chance.choice(sorted(processes.items()))
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(FROZEN_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)
    channel.move()
    return f"the {name} stood still"


FAULTS: tuple[Callable[[Channel], str], ...] = (
    corrupt_release,
    killed_publisher,
    store_away,
    full_disk_of_server,
    slow_store,
    truncated_live_release,
    full_disk_of_publisher,
    torn_entry,
    frozen,
)


def _weights_of(channel: Channel, release: str) -> Path:
    return channel.setting.store_folder / "releases" / release / WEIGHTS


def _not_live(channel: Channel) -> str:
    live = channel.status()["live"]["release"]
    return channel.chance.choice([release for release in channel.setting.releases if release != live])


def _expect_refusal(order: Callable[[], object]) -> str:
    try:
        order()
    except Refused as refused:
        return str(refused)
    raise BenchmarkError("expected the publisher to fail, and it did not")


def _remove_unused_releases(channel: Channel) -> None:
    for folder in (channel.setting.store_folder / "releases").iterdir():
        if folder.name not in channel.setting.releases:
            shutil.rmtree(folder)


def _publish_whole(channel: Channel, adapter: Path) -> None:
    channel.setting.inputs.store.load_release(channel.publisher.publish(adapter))
