"""The order of examples: every epoch whole, the same for the same seed."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_serve.training.plan import plan_steps, steps_of_epochs


@given(
    forget=st.integers(1, 20),
    retain=st.integers(0, 20),
    forget_batch=st.integers(1, 9),
    retain_batch=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_joint(forget: int, retain: int, forget_batch: int, retain_batch: int, seed: int) -> None:
    pools = range(forget), range(100, 100 + retain)
    options = {"schedule": "joint", "forget_batch": forget_batch, "retain_batch": retain_batch, "seed": seed}
    plans = plan_steps(*pools, steps=60, **options)
    assert plans == plan_steps(*pools, steps=60, **options)
    assert plans[:7] == plan_steps(*pools, steps=7, **options), "a longer run begins like a shorter one"
    for pool, size, batches in (
        (pools[0], forget_batch, [plan.forget for plan in plans]),
        (pools[1], retain_batch, [plan.retain for plan in plans]),
    ):
        assert all(len(set(batch)) == len(batch) == min(size, len(pool)) for batch in batches)
        seen = Counter(example for batch in batches for example in batch)
        assert set(seen) == set(pool)
        assert not seen or max(seen.values()) - min(seen.values()) <= 1, "no example is seen twice more than another"


@given(
    forget=st.integers(1, 9), retain=st.integers(1, 9), forget_batch=st.integers(1, 4), retain_batch=st.integers(1, 4)
)
def test_alternate(forget: int, retain: int, forget_batch: int, retain_batch: int) -> None:
    plans = plan_steps(
        range(forget),
        range(100, 100 + retain),
        schedule="alternate",
        forget_batch=forget_batch,
        retain_batch=retain_batch,
        steps=40,
        seed=0,
    )
    epochs: list[list[int]] = [[]]
    for plan in plans:
        assert bool(plan.forget) != bool(plan.retain)
        epochs[-1] += plan.forget or plan.retain
        if plan.closes_epoch:
            epochs.append([])
    for number, epoch in enumerate(epochs[:-1]):
        pool = range(100, 100 + retain) if number % 2 == 0 else range(forget)
        assert sorted(epoch) == list(pool), "a retain epoch, a forget epoch, and so on"


def test_without_retained_examples_only_forgotten_ones_are_planned() -> None:
    (plan,) = plan_steps(range(3), [], schedule="joint", forget_batch=2, retain_batch=4, steps=1, seed=0)
    assert len(plan.forget) == 2
    assert plan.retain == ()


@pytest.mark.parametrize(
    ("schedule", "forget", "retain", "epochs", "expected"),
    [
        ("alternate", 3, 7, 1, 2 + 2),  # batches of 2 and 4
        ("alternate", 4, 8, 5, 5 * (2 + 2)),
        ("joint", 3, 7, 1, 2),
        ("joint", 9, 4, 3, 3 * 5),
        ("joint", 3, 0, 2, 2 * 2),
    ],
)
def test_steps_of_epochs(schedule: str, forget: int, retain: int, epochs: int, expected: int) -> None:
    sizes = {"forget_batch": 2, "retain_batch": 4}
    got = steps_of_epochs(forget, retain, schedule=schedule, epochs=epochs, **sizes)
    assert got == expected
    if schedule == "alternate":
        plans = plan_steps(range(forget), range(100, 100 + retain), schedule=schedule, steps=got, seed=0, **sizes)
        assert sum(plan.closes_epoch for plan in plans) == 2 * epochs
        assert plans[-1].closes_epoch
