"""An API server beside the one that follows the channel: it names what that one made live, and swaps nothing."""

import asyncio
from typing import Any

from unlearn_serve.errors import UnlearnServeError
from unlearn_serve.serving import metrics
from unlearn_serve.serving.board import Board, Record
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.live import Live
from unlearn_serve.serving.vllm_internals import set_system_fingerprint

_LOOK_FOR_START_SECONDS = 0.05


class Observer:
    """Stands where the first API server has its `Follower`."""

    def __init__(self, board: Board, live: Live, app_state: Any) -> None:
        self._board = board
        self._live = live
        self._app_state = app_state

    @classmethod
    async def join(cls, config: ServingConfig, app_state: Any) -> "Observer":
        """Wait until the first API server has verified that a release is enforced, and name that.

        Should it refuse to start, or die, vLLM ends all of them.
        """
        observer = None
        while True:
            if observer is None and (board := Board.of_this_run(config.board_path)) is not None:
                observer = cls(board, Live(channel=config.channel), app_state)
            if observer is not None and observer.look():
                return observer
            await asyncio.sleep(_LOOK_FOR_START_SECONDS)

    @property
    def live(self) -> Live:
        """What is live at this moment."""
        self.look()
        return self._live

    def look(self) -> bool:
        """Learn what is live now; tells whether that is news. What cannot be read is as if enforcement were broken."""
        try:
            record = self._board.read()
        except UnlearnServeError as error:
            record = Record(broken=str(error))
        if record is None:
            return False
        if record.broken is not None:
            self._live.break_off(record.broken)
        else:
            self._live.broken = None  # what could not be read before has been overwritten
            self._live.move_to(record.entry, ())
            set_system_fingerprint(self._app_state, self._live.fingerprint)
            metrics.count_under(self._live)
        return True
