"""What a server's answer means beside what its channel says: live, on its way, or stuck."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from unlearn_serve.fleet.ask import Answer, Status
from unlearn_serve.store import ChannelEntry

State = Literal["live", "behind", "refused", "broken", "foreign", "unreachable"]
"""
live         that generation, or a later one, is live on every worker
behind       an earlier one is; the server is on its way, or cannot read the store
refused      it tried that generation, or a later one, and could not take it; tries again every 10 seconds
broken       a swap was neither completed nor undone; restart it
foreign      it takes none of the keys, follows another channel or store, or is no server of ours
unreachable  no answer, or an error of the server's own
"""

MAX_PROBLEM = 4096

STUCK: frozenset[State] = frozenset({"refused", "broken", "foreign"})
"""Waiting alone is not likely to make it live."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A generation of a channel that is to be live everywhere."""

    channel: str
    generation: int
    release: str | None
    """None where nobody could tell."""

    @classmethod
    def of(cls, entry: ChannelEntry) -> "Target":
        """The one that a channel's entry names."""
        return cls(channel=entry.channel, generation=entry.generation, release=entry.release)


@dataclass(frozen=True, kw_only=True)
class Report:
    """One server's row."""

    answer: Answer
    state: State
    problem: str | None
    """Why it is not live; where it is, why it does not take what came after."""


def judge(answer: Answer, target: Target) -> Report:
    """Say where a server stands."""
    state: State
    if answer.status is None:
        state, problem = "foreign" if answer.final else "unreachable", answer.error
    else:
        state, problem = _judge(answer.status, target)
    return Report(answer=answer, state=state, problem=_one_line(problem) if problem else None)


def _judge(status: Status, target: Target) -> tuple[State, str | None]:
    live = status.live
    if status.broken:
        return "broken", status.broken
    if status.channel != target.channel:
        return "foreign", f"expected a follower of channel {target.channel!r}, got one of {status.channel!r}"
    if live.generation == target.generation and target.release not in (None, live.release):
        return "foreign", (
            f"expected release {target.release} as generation {target.generation}, got {live.release}: another store?"
        )
    if live.generation > target.generation and status.store_error:
        return "behind", status.store_error  # whether that later one is of this channel's history is not known
    if live.generation >= target.generation:
        return ("live", status.refused or status.store_error) if status.enforced else ("behind", _not_enforced(status))
    if status.refused and status.seen_generation >= target.generation:
        return "refused", status.refused
    return "behind", status.store_error


def _one_line(text: str) -> str:
    """What a server says, cut, and without what could forge lines or move the cursor of whoever reads it."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MAX_PROBLEM])


def _not_enforced(status: Status) -> str:
    if not status.live.generation:
        return "it serves the plain model"
    several = len({worker.engine for worker in status.workers}) > 1
    names = [f"{worker.engine}.{worker.rank}" if several else str(worker.rank) for worker in status.workers]
    held = [(worker.release or "plain")[:16] for worker in status.workers]
    on = ", ".join(f"{name}: {release}" for name, release in zip(names, held, strict=True))
    return f"expected every worker on {status.live.release[:16]}, got {on or 'no worker'}"


def newest(answers: Iterable[Answer], channel: str) -> Target:
    """The newest generation of `channel` that any server has seen; what to compare with where the store is not at hand.

    Generation 0 where none has seen one.
    """
    said = [answer.status for answer in answers if answer.status and answer.status.channel == channel]
    generation = max((max(one.seen_generation, one.live.generation) for one in said), default=0)
    releases = [one.live.release for one in said if generation and one.live.generation == generation]
    return Target(channel=channel, generation=generation, release=releases[0] if releases else None)
