"""What may be wrong with store or state when a server that was killed is started again."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak.breakage import away, truncated
from benchmarks.soak.faults import WEIGHTS
from benchmarks.soak.setting import CHANNEL, Setting
from unlearn_serve.store.channel_entry import entry_path


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is wrong when the server is started again, and what docs/operations.md, section 1, says of it."""

    name: str
    expected: str
    make: Callable[[Setting], AbstractContextManager[None]]
    """Does it, and undoes it at the end."""


def _live_weights(setting: Setting) -> Path:
    release = setting.inputs.store.channel(CHANNEL).release
    return setting.store_folder / "releases" / release / WEIGHTS


def _newest_entry(setting: Setting) -> Path:
    return setting.store_folder / entry_path(CHANNEL, setting.inputs.store.channel(CHANNEL).generation)


def _last_applied(setting: Setting) -> Path:
    return setting.audit_log.with_name("last_applied.json")


@contextmanager
def _both_lost(setting: Setting) -> Iterator[None]:
    with truncated(_last_applied(setting)), away(setting.store_folder):
        yield


DAMAGES = (
    Damage(name="none", expected="ready", make=lambda _: nullcontext()),
    Damage(name="store away", expected="ready", make=lambda setting: away(setting.store_folder)),
    Damage(name="none", expected="ready", make=lambda _: nullcontext()),
    Damage(name="release truncated", expected="refuses", make=lambda setting: truncated(_live_weights(setting))),
    Damage(name="last_applied truncated", expected="ready", make=lambda setting: truncated(_last_applied(setting))),
    Damage(name="none", expected="ready", make=lambda _: nullcontext()),
    Damage(name="entry truncated", expected="refuses", make=lambda setting: truncated(_newest_entry(setting))),
    Damage(name="store away, last_applied truncated", expected="refuses", make=_both_lost),
)
