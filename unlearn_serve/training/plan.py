"""Which examples each step sees: fixed before the first step, so that a resumed run sees the same."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal


@dataclass(frozen=True)
class StepPlan:
    """Examples of one micro-step, by index."""

    forget: tuple[int, ...]
    retain: tuple[int, ...]

    closes_epoch: bool
    """Whether this step ends an epoch of the alternation; always False in the joint form."""


def steps_of_epochs(
    forget: int,
    retain: int,
    *,
    schedule: Literal["joint", "alternate"],
    forget_batch: int,
    retain_batch: int,
    epochs: int,
) -> int:
    """Return the micro-steps of `epochs` epochs of sets of so many examples.

    alternate: one epoch of each set counts as one. joint: an epoch ends when both sets were gone through once.
    """
    passes = math.ceil(forget / forget_batch), math.ceil(retain / retain_batch)
    return epochs * (sum(passes) if schedule == "alternate" else max(passes))


def plan_steps(
    forget: Sequence[int],
    retain: Sequence[int],
    *,
    schedule: Literal["joint", "alternate"],
    forget_batch: int,
    retain_batch: int,
    steps: int,
    seed: int,
) -> list[StepPlan]:
    """Return `steps` plans. Every epoch goes through its set once, in an order of its own.

    joint: `forget_batch` forgotten and `retain_batch` retained examples in each step (fewer where a set has fewer);
    each set is gone through independently of the other. alternate: an epoch of retained examples, `retain_batch` a
    step, then one of forgotten examples, and so on.
    """
    rng = random.Random(seed)
    if schedule == "alternate":
        return list(islice(_alternate(forget, retain, forget_batch, retain_batch, rng), steps))
    forgotten = _cycle(forget, min(forget_batch, len(forget)), rng)
    retained = _cycle(retain, min(retain_batch, len(retain)), rng)
    return [StepPlan(next(forgotten), next(retained), closes_epoch=False) for _ in range(steps)]


def _cycle(pool: Sequence[int], size: int, rng: random.Random) -> Iterator[tuple[int, ...]]:
    """Batches of `size` distinct examples without end; an epoch's rest begins the next batch."""
    waiting: list[int] = []
    while True:
        batch, waiting = waiting[:size], waiting[size:]
        if len(batch) < size:
            epoch = rng.sample(pool, len(pool))
            fresh = [example for example in epoch if example not in batch]
            taken = fresh[: size - len(batch)]
            batch = batch + taken
            waiting = [example for example in epoch if example not in taken]
        yield tuple(batch)


def _alternate(
    forget: Sequence[int], retain: Sequence[int], forget_batch: int, retain_batch: int, rng: random.Random
) -> Iterator[StepPlan]:
    while True:
        for pool, size, forgets in ((retain, retain_batch, False), (forget, forget_batch, True)):
            epoch = rng.sample(pool, len(pool))
            for start in range(0, len(epoch), size):
                batch = tuple(epoch[start : start + size])
                last = start + size >= len(epoch)
                yield StepPlan(batch, (), last) if forgets else StepPlan((), batch, last)
