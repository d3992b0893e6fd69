"""What the API servers of one run share, and what those that do not swap make of it."""

import asyncio
import multiprocessing
import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.datastructures import State

from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving.board import Board, Record
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.live import Live
from unlearn_serve.serving.observer import Observer
from unlearn_serve.store import ChannelEntry


def entry(generation: int, **fields: Any) -> ChannelEntry:
    said = {
        "channel": "production",
        "generation": generation,
        "release": f"{generation:064x}",
        "action": "promote",
        "restores_generation": None,
        "at": datetime(2026, 1, 1, tzinfo=UTC),
        "actor": "test",
        "reason": "",
    }
    return ChannelEntry.model_validate({**said, **fields})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "board"


@pytest.fixture
def board(path: Path) -> Board:
    return Board.create(path)


def damage(board: Board) -> None:
    """Spoil every record."""
    board._map[48:] = b"\0" * (len(board._map) - 48)


def reader(path: Path) -> Board:
    found = Board.of_this_run(path)
    assert found is not None
    return found


def test_each_record_is_read_once(board: Board, path: Path) -> None:
    mine = reader(path)
    assert mine.read() is None, "nothing has been said yet"
    uncovers = tuple(f"case-{number:06d}" for number in range(20_000))
    longest = entry(3, uncovers=uncovers, reason="kept on paper")
    for record in (Record(entry=entry(2)), Record(entry=longest), Record(), Record(broken="why")):
        board.write(record)
        assert mine.read() == record
        assert mine.read() is None
    board.write(Record(entry=entry(4)))
    board.write(Record(entry=entry(5)))
    assert mine.read() == Record(entry=entry(5))
    assert reader(path).read() == Record(entry=entry(5)), "for whoever comes late too"


def test_another_run_has_another_board(board: Board, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: an API server that is ready before the first one names what an earlier run had live."""
    board.write(Record(entry=entry(2)))
    with monkeypatch.context() as restarted:
        restarted.setattr(multiprocessing.current_process(), "authkey", os.urandom(32))
        assert Board.of_this_run(path) is None
    assert Board.of_this_run(path.with_name("none")) is None
    path.with_name("short").write_bytes(b"half")
    assert Board.of_this_run(path.with_name("short")) is None
    assert path.stat().st_mode & 0o077 == 0


def test_a_record_in_the_writing_is_never_taken_for_one(board: Board, path: Path) -> None:
    board.write(Record(entry=entry(2)))
    mine = reader(path)
    damage(board)
    with pytest.raises(NotEnforced, match="expected what the first API server made live, got damage"):
        mine.read()


def test_the_newest_record_stays_whole_while_the_next_is_written(
    board: Board, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug: the writer loses the processor between record and head, and whoever looks then finds no release."""
    board.write(Record(entry=entry(2)))
    late = reader(path)

    class Killed(Exception):
        pass

    class Stops:
        """The map, up to the moment at which the head would be written."""

        def __init__(self, whole: Any) -> None:
            self._whole = whole

        def __setitem__(self, where: slice, data: bytes) -> None:
            if where.start is None:
                raise Killed
            self._whole[where] = data

    monkeypatch.setattr(board, "_map", Stops(board._map))
    with pytest.raises(Killed):
        board.write(Record(entry=entry(3)))
    assert late.read() == Record(entry=entry(2))


class Seat:
    """An API server that observes, with one of vLLM's serving objects."""

    def __init__(self, path: Path) -> None:
        self.state = State()
        self.state.chat = SimpleNamespace(system_fingerprint="vLLM's own")
        self.observer = Observer(reader(path), Live(channel="production"), self.state)

    @property
    def named(self) -> tuple[str, int, str]:
        live = self.observer.live
        return live.release, live.generation, self.state.chat.system_fingerprint


def test_an_observer_names_what_the_first_one_made_live(board: Board, path: Path) -> None:
    first = Live(channel="production", board=board)
    first.move_to(entry(2), ("case-1",))
    seat = Seat(path)
    assert seat.named == (entry(2).release, 2, first.fingerprint)

    first.move_to(entry(3), ("case-1", "case-2"))
    assert seat.named == (entry(3).release, 3, first.fingerprint)
    first.move_to(None, ())
    assert seat.named == ("plain", 0, "unlearn-plain")


def test_what_is_broken_for_the_first_is_broken_for_all(board: Board, path: Path) -> None:
    first = Live(channel="production", board=board)
    first.move_to(entry(2), ())
    seat = Seat(path)
    first.break_off("swap failed and could not be undone")
    assert seat.observer.live.broken == "swap failed and could not be undone"

    board.write(Record(entry=entry(3)))
    late = Seat(path)
    damage(board)
    assert "restart the server" in str(late.observer.live.broken), "what cannot be read is no release"
    board.write(Record(entry=entry(4)))
    assert late.named == (entry(4).release, 4, "unlearn-0000000000000000-g4")
    assert late.observer.live.broken is None


def test_it_joins_when_the_first_has_verified(tmp_path: Path) -> None:
    config = ServingConfig(store="/store", state_dir=str(tmp_path))

    async def scenario() -> None:
        joining = asyncio.create_task(Observer.join(config, State()))
        await asyncio.sleep(0.2)
        board = Board.create(config.board_path)
        await asyncio.sleep(0.2)
        assert not joining.done(), "the board is there, and nothing on it"
        Live(channel="production", board=board).move_to(entry(2), ())
        assert (await joining).live.generation == 2

    asyncio.run(scenario())
