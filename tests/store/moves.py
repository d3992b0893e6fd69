"""Short names for moves of the channel that the tests use."""

from pathlib import Path
from typing import Any

from unlearn_serve.store import ChannelEntry, Store


def entry_file(store: Store, generation: int, channel: str = "production") -> Path:
    return Path(store.url) / "channels" / channel / f"{generation:020d}.json"


def promote(store: Store, digest: str, **options: Any) -> ChannelEntry:
    return store.promote(digest, "production", actor="ann", **options)


def rollback(store: Store, **options: Any) -> ChannelEntry:
    return store.rollback("production", actor="bob", **options)
