"""Which release a server starts on: the channel's, or the last one applied where the store cannot be reached."""

import logging
from dataclasses import dataclass

from unlearn_serve.errors import (
    ChannelNotFound,
    DowngradeRefused,
    NotEnforced,
    StoreUnavailable,
    TrustError,
    UnlearnServeError,
)
from unlearn_serve.format.fingerprint import require_same_base
from unlearn_serve.format.manifest import BaseModelRef
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.last_applied import LastApplied
from unlearn_serve.store import ChannelEntry, Release

logger = logging.getLogger("vllm.unlearn_serve")


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """A verified release and the channel entry that names it."""

    entry: ChannelEntry
    release: Release
    from_store: bool
    """False where the store could not be reached and the last applied release is used."""


def find_starting_point(config: ServingConfig, base_model: BaseModelRef | None) -> StartingPoint | None:
    """Return what to serve first; None means the plain model, which `allow_plain` permits.

    Args:
        config: settings of the server.
        base_model: what the release must belong to; None where the base is not at hand yet, to check later.

    Raises:
        BaseModelMismatch: the release belongs to another base model.
        TrustError: no trusted key signed it, or it gives back what this server had deleted.
        NotEnforced: there is nothing to serve under, or it is not what was served last; the message says why.
    """
    start: StartingPoint | None
    try:
        start = _from_store(config)
    except (StoreUnavailable, ChannelNotFound) as error:
        start = _from_state(config)
        if start is None:
            if config.allow_plain:
                return None
            raise NotEnforced(
                f"no release to start on: {error}; no earlier release is kept in {config.state_path}; "
                "promote a release first, or allow the plain model with --allow-plain"
            ) from error
        logger.warning("unlearn-serve: %s; starting on the release applied last, %s", error, start.release.digest)
    except TrustError:
        raise
    except UnlearnServeError as error:
        raise NotEnforced(f"channel {config.channel!r} names a release that cannot be served: {error}") from error
    if base_model is not None:
        require_same_base(start.release.manifest.base_model, base_model)
    return start


def _from_store(config: ServingConfig) -> StartingPoint:
    """The channel's newest entry, if it is not older than what this server has applied, and gives nothing back."""
    store = config.open_store()
    entry = store.channel(config.channel)
    last = LastApplied(config.state_path)
    applied, covered = last.memory() or (None, ())
    if applied is not None:
        _require_not_older(entry, applied.generation, applied.digest)
    _require_not_older(entry, *last.marked)  # it says more where what was applied last could not be kept
    store.admit(entry, applied=applied, covered=covered)
    return StartingPoint(entry=entry, release=store.load_release(entry.release), from_store=True)


def _from_state(config: ServingConfig) -> StartingPoint | None:
    kept = LastApplied(config.state_path, config.trusted_keys).recall()
    if kept is None:
        return None
    entry, release = kept
    return StartingPoint(entry=entry, release=release, from_store=False)


def _require_not_older(entry: ChannelEntry, generation: int, digest: str) -> None:
    """Generations only grow: a store that lost some was emptied, restored from a backup, or set back by somebody."""
    if entry.generation > generation or (entry.generation, entry.digest) == (generation, digest):
        return
    got = "another entry of that number" if entry.generation == generation else str(entry.generation)
    raise DowngradeRefused(
        f"channel {entry.channel!r}: expected generation {generation} as this server applied it, or a later "
        f"one, got {got}; promote until its generation is beyond that one"
    )
