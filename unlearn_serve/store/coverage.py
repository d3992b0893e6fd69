"""What a channel's move gives back: deletion requests that were covered and no longer are. Never by accident."""

from collections.abc import Collection

from unlearn_serve.errors import DropsDeletions, FormatError, ReleaseNotFound, TrustError
from unlearn_serve.format.manifest import Manifest
from unlearn_serve.store.channel_entry import ChannelEntry
from unlearn_serve.store.channels import Channels
from unlearn_serve.store.releases import Releases


def uncovered_by_move(
    channels: Channels, releases: Releases, channel: str, newest: int, manifest: Manifest, *, allow: bool, reason: str
) -> tuple[str, ...]:
    """The deletion requests that generation `newest` of `channel` covers and `manifest` does not.

    Args:
        channels: where the channel is.
        releases: where its releases are.
        channel: its name.
        newest: its newest generation; 0 where there is none, so that nothing is given back.
        manifest: of the release that is to be live.
        allow: they may be given back, for `reason`. Then a generation that cannot be read, so that nobody knows what it
            covers, is passed over.
        reason: why; needed where something is given back.

    Raises:
        DropsDeletions: there are some and that is not allowed, or no reason is given, or what was covered is unknown.
    """
    dropped = tuple(sorted(_covered(channels, releases, channel, newest, skip=allow) - set(manifest.deletion_ids)))
    if dropped and not (allow and reason):
        raise DropsDeletions(
            f"channel {channel!r}: generation {newest} covers {_shown(dropped)}, release {manifest.digest} does not: "
            "the model would know it again; promote a fused one that covers all, or give --allow-uncover and --reason"
        )
    return dropped


def require_declared(
    channels: Channels,
    entry: ChannelEntry,
    manifest: Manifest,
    *,
    applied: ChannelEntry | None,
    covered: Collection[str],
) -> None:
    """Return if `entry` gives nothing back that it, or an entry since `applied`, does not name in `uncovers`.

    Args:
        channels: where the entry is.
        entry: what is to be applied.
        manifest: of its release.
        applied: what was applied last.
        covered: the deletion requests covered by what was applied last.

    Raises:
        DropsDeletions: it does.
        HistoryBroken: trusted keys are set, and `entry` does not descend from `applied`.
    """
    since = channels.since(applied, entry) if applied is not None else [entry]
    missing = set(covered) - set(manifest.deletion_ids)
    for one in since:
        missing -= set(one.uncovers)
    if missing:
        raise DropsDeletions(
            f"channel {entry.channel!r} generation {entry.generation}: what was applied before covers "
            f"{_shown(sorted(missing))}, release {entry.release} does not and no entry allows that; promote a release "
            "that covers all, or the same one with --allow-uncover and --reason"
        )


def _covered(channels: Channels, releases: Releases, channel: str, newest: int, *, skip: bool) -> set[str]:
    for generation in range(newest, 0, -1):
        try:
            return set(releases.load_manifest(channels.read_trusted(channel, generation).release).deletion_ids)
        except (FormatError, TrustError, ReleaseNotFound) as error:
            if not skip:
                raise DropsDeletions(
                    f"channel {channel!r}: what generation {generation} covers is unknown ({error}); repair it, or say "
                    "--allow-uncover and --reason"
                ) from error
    return set()


def _shown(ids: Collection[str]) -> str:
    few = ", ".join(list(ids)[:3])
    return few if len(ids) <= 3 else f"{few} and {len(ids) - 3} more"
