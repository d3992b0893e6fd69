"""One generation of a channel: which release is live from here on, who said so and why. Written once, never changed."""

import hashlib
import re
from itertools import pairwise
from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from unlearn_serve.errors import FormatError, StoreError
from unlearn_serve.format.fields import Actor, DeletionId, Line, Sha256, UtcTime
from unlearn_serve.format.strict_json import StrictModel, shown

CHANNEL_SCHEMA: Final = "unlearn-serve/channel/2"
MAX_ENTRY_BYTES = 2**20
MAX_GENERATION = 10**20 - 1
"""The last generation that 20 digits can name."""

_CHANNEL_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"

ChannelName = Annotated[str, StringConstraints(pattern=_CHANNEL_PATTERN)]
Generation = Annotated[int, Field(ge=1, le=MAX_GENERATION)]


class ChannelEntry(StrictModel):
    """The content of channels/<channel>/<generation>.json."""

    schema_: Literal["unlearn-serve/channel/2"] = Field(default=CHANNEL_SCHEMA, alias="schema")
    channel: ChannelName
    generation: Generation
    release: Sha256
    action: Literal["promote", "rollback"]
    restores_generation: Generation | None
    """For a rollback: the generation of the promote whose release is live again."""
    at: UtcTime
    actor: Actor
    reason: Line
    uncovers: tuple[DeletionId, ...] = ()
    """Deletion requests that the release live before covered and this one does not: allowed on purpose."""
    previous: Sha256 | None = None
    """SHA-256 of the last sound entry before, so that one entry vouches for all before it; null in the first."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.action == "promote" and self.restores_generation is not None:
            raise ValueError("restores_generation: expected null for a promote")
        if self.action == "rollback" and (
            self.restores_generation is None or self.restores_generation >= self.generation
        ):
            raise ValueError("restores_generation: expected an earlier generation for a rollback")
        if any(one >= two for one, two in pairwise(self.uncovers)):
            raise ValueError("uncovers: expected sorted ids, each once")
        if self.uncovers and not self.reason:
            raise ValueError("reason: expected one where deletion requests are no longer covered")
        return self

    @property
    def promoted_at(self) -> int:
        """The generation of the promote that made this entry's release live: its own, or the one it restores."""
        return self.generation if self.restores_generation is None else self.restores_generation

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of `to_bytes()`: what the next entry names as `previous`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str) -> Self:
        """Parse the bytes of an entry; `source` is how messages name it.

        Raises:
            FormatError: one line: where, expected, got.
        """
        return cls.read(data, source=source, max_bytes=MAX_ENTRY_BYTES, error=FormatError)


def is_channel_name(name: str) -> bool:
    """Whether `name` may name a channel."""
    return re.fullmatch(_CHANNEL_PATTERN[1:-1], name) is not None


def require_channel_name(name: str) -> str:
    """Return `name` if it is a channel's name.

    Raises:
        StoreError: it is not; so nothing else ever reaches a path.
    """
    if not is_channel_name(name):
        raise StoreError(
            f"channel: expected 1 to 64 of a-z 0-9 . _ - that start with a letter or digit, got {shown(name)}"
        )
    return name


def entry_path(channel: str, generation: int) -> str:
    """Where the entry lies; twenty digits, so that listings sort by generation."""
    return f"channels/{channel}/{generation:020d}.json"


def generation_of(path: str) -> int | None:
    """The generation that a listed path names, None where it is no entry's path."""
    found = re.fullmatch(r"channels/[^/]+/([0-9]{20})\.json", path)
    return int(found[1]) if found else None
