"""The fuzz targets, without the fuzzer: their seeds are read, and random damage to them lets no other error out."""

import pytest
from fuzz.targets import TARGETS, check, seeds
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name: str) -> None:
    """Otherwise the fuzzer would never come past the first check."""
    assert check(name, seeds(name)[0])


@pytest.mark.parametrize("name", TARGETS)
@given(
    number=st.integers(0, 1),
    cuts=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 8), st.binary(max_size=12)), min_size=1, max_size=3),
)
@settings(max_examples=100)
def test_damaged_seeds(name: str, number: int, cuts: list[tuple[int, int, bytes]]) -> None:
    found = seeds(name)
    data = found[number % len(found)]
    for place, length, more in cuts:
        at = place % (len(data) + 1)
        data = data[:at] + more + data[at + length :]
    check(name, data)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=200))
def test_noise(name: str, data: bytes) -> None:
    check(name, data)
