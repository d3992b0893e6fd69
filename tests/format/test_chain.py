"""A chain shows every edit, removal, insertion and other order, wherever it is, but for its end."""

import json

from hypothesis import given
from hypothesis import strategies as st

from unlearn_serve.format.chain import Link, chain_faults, head_of, lines_of


def chain(texts: list[str]) -> list[bytes]:
    at, records = Link(), []
    for text in texts:
        records.append(json.dumps({"text": text, "seq": at.seq + 1, "previous": at.digest}).encode())
        at = at.after(records[-1])
    return records


def places(records: list[bytes]) -> list[str]:
    return [fault.where for fault in chain_faults((f"r{number}", data) for number, data in enumerate(records, 1))]


@given(st.lists(st.text(), max_size=8))
def test_a_sound_chain_has_no_faults(texts: list[str]) -> None:
    records = chain(texts)
    assert places(records) == []
    assert head_of(records).seq == len(texts)
    assert lines_of(b"".join(record + b"\n" for record in records)) == records


@given(st.lists(st.text(), min_size=2, max_size=8), st.data())
def test_any_change_before_the_end_shows_right_behind_it(texts: list[str], data: st.DataObject) -> None:
    records = chain(texts)
    at = data.draw(st.integers(0, len(records) - 2))
    match data.draw(st.sampled_from(["edit", "remove", "insert", "swap"])):
        case "edit":
            changed = [*records[:at], chain([*texts[:at], texts[at] + "!"])[-1], *records[at + 1 :]]
            assert places(changed) == [f"r{at + 2}"]
        case "remove":
            assert f"r{at + 1}" in places([*records[:at], *records[at + 1 :]])
        case "insert":
            extra = chain([*texts[:at], "more"])[-1]
            assert f"r{at + 2}" in places([*records[:at], extra, *records[at:]])
        case "swap":
            changed = [*records[:at], records[at + 1], records[at], *records[at + 2 :]]
            assert f"r{at + 1}" in places(changed)


@given(st.lists(st.text(), min_size=1, max_size=8), st.data())
def test_a_cut_or_changed_end_moves_the_head(texts: list[str], data: st.DataObject) -> None:
    """The chain itself is sound; who noted the head sees it."""
    records = chain(texts)
    left = data.draw(st.integers(0, len(records) - 1))
    assert places(records[:left]) == []
    assert head_of(records[:left]) != head_of(records)
    assert head_of([*records[:-1], chain([*texts[:-1], texts[-1] + "!"])[-1]]) != head_of(records)


def test_half_a_record_is_named_and_the_chain_goes_on_behind_it() -> None:
    records = chain(["a", "b"])
    half = records[1][:10]
    next_one = json.dumps({"seq": 3, "previous": Link().after(half).digest}).encode()
    (fault,) = chain_faults([("r1", records[0]), ("r2", half), ("r3", next_one)])
    assert str(fault).startswith("r2: not a record, or half of one: expected JSON")
    for other in (b"[]", b"", b'{"seq":1,"seq":1}', b'{"seq":' + b"[" * 99 + b"]" * 99 + b"}", b"\xff", b"7" * 5000):
        (fault,) = chain_faults([("r1", other)])
        assert "\n" not in str(fault)
