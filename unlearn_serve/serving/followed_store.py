"""The store as a follower uses it: opened once, and anew where the connection fails."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from unlearn_serve.errors import StoreUnavailable, UnlearnServeError
from unlearn_serve.store import Store

Result = TypeVar("Result")


class FollowedStore:
    """Keeps one open store between calls. For one caller at a time."""

    def __init__(self, open_store: Callable[[], Store]) -> None:
        """Open with `open_store`, when it is first needed."""
        self._open = open_store
        self._store: Store | None = None

    async def call(self, use: Callable[[Store], Result]) -> Result:
        """Return what `use` returns, called with the store in a thread.

        A store that was opened for an earlier call and fails now (expired credentials, a folder that was mounted anew)
        is opened anew and asked once more; what a store says of its contents is no such failure.

        Raises:
            StoreUnavailable: it cannot be opened, or failed although just opened; the next call opens it anew.
            Exception: what `use` raises otherwise.
        """
        return await asyncio.to_thread(self._call, use)

    def _call(self, use: Callable[[Store], Result]) -> Result:
        kept, self._store = self._store, None
        if kept is not None:
            try:
                return self._keeping(kept, use)
            except StoreUnavailable:
                pass
        return self._keeping(self._open(), use)

    def _keeping(self, store: Store, use: Callable[[Store], Result]) -> Result:
        """Keep `store` for the next call, unless it fails in this one."""
        try:
            result = use(store)
        except StoreUnavailable:
            raise
        except UnlearnServeError:
            self._store = store
            raise
        self._store = store
        return result
