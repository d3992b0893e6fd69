"""The table behind routes: a route is served under its own slot while, and only while, it covers the default's ids."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearn_serve.serving.route_table import Route, RouteTable

FIRST = 2


def route(*ids: str, name: str = "r") -> Route:
    return Route(release=name * 64, activation=2, deletion_ids=frozenset(ids))


def table(held: list[Route | None], *, require_coverage: bool = True) -> RouteTable:
    made = RouteTable(
        torch.full((len(held) + 1,), -1, dtype=torch.int32), first_slot=FIRST, require_coverage=require_coverage
    )
    made.adapter_at = held.__getitem__
    return made


def test_ordinary_adapters_and_empty_slots_take_the_default() -> None:
    made = table([None, route("a", "b"), None])
    made.move_default(1, frozenset({"a"}))
    for index in range(3):
        made.refresh(index)

    assert made.slot_of_route.tolist() == [1, 1, FIRST + 1, 1]


def test_before_the_first_release_everything_is_plain_but_the_routes() -> None:
    made = table([route("a"), None])
    made.refresh(0)

    assert made.slot_of_route.tolist() == [-1, FIRST, -1]


def test_a_flip_moves_the_default_and_every_route_that_no_longer_covers_it_at_once() -> None:
    """The bug: a new default's deletion is in force for plain requests, and not for those under an older route."""
    made = table([route("a"), route("a", "b")])
    made.move_default(0, frozenset({"a"}))
    made.refresh(0)
    made.refresh(1)
    assert made.slot_of_route.tolist() == [0, FIRST, FIRST + 1]

    made.move_default(1, frozenset({"a", "b"}))
    assert made.slot_of_route.tolist() == [1, 1, FIRST + 1]

    made.move_default(0, frozenset({"a"}))
    assert made.slot_of_route.tolist() == [0, FIRST, FIRST + 1]


def test_a_slot_that_changes_hands_forgets_who_had_it() -> None:
    """The bug: an ordinary LoRA in a slot that a release had before is served under that release's layers."""
    held: list[Route | None] = [route("a")]
    made = table(held)
    made.move_default(0, frozenset())
    made.refresh(0)
    held[0] = None
    made.refresh(0)

    assert made.slot_of_route.tolist() == [0, 0]


def test_where_coverage_is_not_demanded_every_release_has_its_slot() -> None:
    made = table([route("z")], require_coverage=False)
    made.refresh(0)
    made.move_default(1, frozenset({"a", "b"}))

    assert made.slot_of_route.tolist() == [1, FIRST]


IDS = st.frozensets(st.sampled_from("abc"))


@given(
    st.lists(st.none() | IDS, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(-1, 1), IDS), max_size=5),
    st.randoms(use_true_random=False),
)
def test_after_any_history_a_token_is_served_under_all_ids_of_the_default(
    releases: list[frozenset[str] | None], flips: list[tuple[int, frozenset[str]]], random: object
) -> None:
    held = [None if ids is None else route(*ids) for ids in releases]
    made = table(held)
    default, wanted = -1, frozenset[str]()
    for step in [*flips, None]:
        made.refresh(random.randrange(len(held)))  # type: ignore[attr-defined]
        if step is not None:
            default, wanted = step
            made.move_default(default, wanted)
        for index, slot in enumerate(made.slot_of_route.tolist()[1:]):
            if slot == default:
                continue
            assert slot == FIRST + index
            found = held[index]
            assert found is not None
            assert wanted <= found.deletion_ids


@pytest.mark.parametrize("index", [0, 1])
def test_it_writes_one_buffer_in_place(index: int) -> None:
    """The bug: a new tensor in its place, which a captured graph would never see."""
    made = table([route("a"), route("a")])
    before = made.slot_of_route.data_ptr()
    made.move_default(1, frozenset())
    made.refresh(index)

    assert made.slot_of_route.data_ptr() == before
