"""C12: where a server starts, with and without trusted keys: on nothing unsigned, nothing older than it applied."""

import ast
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from format.tiny import write_adapter

import unlearn_serve.serving
from unlearn_serve.errors import BadSignature, DropsDeletions, HistoryBroken, NotEnforced, Unsigned
from unlearn_serve.format.keys import SigningKey, generate_key
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.last_applied import LastApplied
from unlearn_serve.serving.starting_point import StartingPoint, find_starting_point
from unlearn_serve.store import ChannelEntry, Store

OPS, OTHER = generate_key(), generate_key()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), create=True)


@pytest.fixture
def promote(store: Store, tmp_path: Path) -> Callable[..., ChannelEntry]:
    """Publish an adapter of these deletion ids and promote it, with either signed by a key of its own."""

    def move(
        *ids: str, release: SigningKey | None = OPS, entry: SigningKey | None = OPS, **options: Any
    ) -> ChannelEntry:
        write_adapter(tmp_path / "adapter", deletion_ids=ids)
        digest = store.publish(tmp_path / "adapter", signer=release)
        return store.promote(digest, "production", actor="test", signer=entry, **options)

    return move


@pytest.fixture
def config(store: Store, tmp_path: Path) -> ServingConfig:
    return ServingConfig(store=store.url, state_dir=str(tmp_path / "state"), trusted_keys=(OPS.public,))


def start(config: ServingConfig) -> StartingPoint:
    found = find_starting_point(config, None)
    assert found is not None
    return found


def remember(config: ServingConfig, entry: ChannelEntry) -> None:
    LastApplied(config.state_path, config.trusted_keys).remember(entry, config.open_store())


def set_back(store: Store, generation: int) -> None:
    """What a thief of the store's credential can do: delete all entries beyond `generation`."""
    for path in sorted((Path(store.url) / "channels" / "production").iterdir())[generation:]:
        path.unlink()


def test_it_starts_on_what_a_trusted_key_signed(config: ServingConfig, promote: Callable[..., ChannelEntry]) -> None:
    entry = promote("a")
    assert (start(config).entry, start(config).from_store) == (entry, True)
    both = config.model_copy(update={"trusted_keys": (OTHER.public, OPS.public)})
    assert start(both).entry == entry


@pytest.mark.parametrize("allow_plain", [False, True])
@pytest.mark.parametrize(
    ("signers", "what"),
    [
        ({"release": None}, "^release "),
        ({"release": OTHER}, "^release "),
        ({"entry": None}, "^channel 'production' generation 1"),
        ({"entry": OTHER}, "^channel 'production' generation 1"),
    ],
)
def test_it_does_not_start_on_anything_else(
    config: ServingConfig, promote: Callable[..., ChannelEntry], signers: dict[str, Any], what: str, allow_plain: bool
) -> None:
    promote("a", **signers)
    with pytest.raises(Unsigned, match=f"{what}.*expected a signature by a trusted key"):
        find_starting_point(config.model_copy(update={"allow_plain": allow_plain}), None)


def test_a_forged_signature_has_an_error_of_its_own(
    config: ServingConfig, store: Store, promote: Callable[..., ChannelEntry]
) -> None:
    entry = promote("a")
    for document in (entry.release, entry.digest):
        path = Path(store.url) / "signatures" / document / f"{OPS.public}.json"
        right = path.read_bytes()
        path.write_bytes(right[:-4] + (b"00" if right[-4:-2] != b"00" else b"11") + right[-2:])
        with pytest.raises(BadSignature):
            find_starting_point(config, None)
        path.write_bytes(right)
    assert start(config).entry == entry


def test_the_kept_copy_carries_its_signatures(
    config: ServingConfig, store: Store, promote: Callable[..., ChannelEntry]
) -> None:
    entry = promote("a")
    remember(config, entry)
    shutil.rmtree(store.url)
    assert (start(config).entry, start(config).from_store) == (entry, False)
    with pytest.raises(Unsigned, match="channel 'production' generation 1"):
        start(config.model_copy(update={"trusted_keys": (OTHER.public,)}))
    shutil.rmtree(config.state_path / "releases" / "signatures")
    with pytest.raises(Unsigned):
        start(config)


def test_a_release_kept_before_there_were_keys_is_not_trusted(
    config: ServingConfig, store: Store, promote: Callable[..., ChannelEntry]
) -> None:
    remember(config.model_copy(update={"trusted_keys": ()}), promote("a", release=None, entry=None))
    shutil.rmtree(store.url)
    with pytest.raises(Unsigned):
        start(config)


@pytest.mark.parametrize("keys", [(), (OPS.public,)])
def test_a_store_that_was_set_back_is_not_followed_back(
    config: ServingConfig, store: Store, promote: Callable[..., ChannelEntry], keys: tuple[str, ...]
) -> None:
    """C12: the entry that is the newest now was signed soundly: only what this server remembers tells."""
    config = config.model_copy(update={"trusted_keys": keys})
    promote("a")
    newest = promote("a", "b")
    remember(config, newest)
    set_back(store, 1)
    assert (start(config).entry, start(config).from_store) == (newest, False)
    promote("a", allow_uncover=True, reason="another generation 2")
    assert (start(config).entry, start(config).from_store) == (newest, False)
    later = promote("a", "b", "c")
    if keys:  # it descends from the other generation 2: restored from a backup by us, or set back by a thief?
        with pytest.raises(HistoryBroken, match="restore from a backup"):
            start(config)
        (config.state_path / "last_applied.json").unlink()
    assert (start(config).entry, start(config).from_store) == (later, True)


def test_a_lost_entry_can_be_put_back(
    config: ServingConfig, store: Store, promote: Callable[..., ChannelEntry]
) -> None:
    """C13: what a server keeps is the entry itself, so a store restored from a backup can go on where it was."""
    for ids in (("a",), ("a", "b"), ("a", "b", "c")):
        newest = promote(*ids)
    remember(config, newest)
    set_back(store, 1)
    place = Path(store.url) / "channels" / "production" / f"{3:020d}.json"
    shutil.copy(config.state_path / "last_applied.json", place)
    later = promote("a", "b", "c", "d")
    assert (later.generation, start(config).entry) == (4, later)


def test_a_store_that_was_set_back_and_nothing_that_may_be_served_instead(
    config: ServingConfig, store: Store, promote: Callable[..., ChannelEntry]
) -> None:
    promote("a")
    remember(config, promote("a", "b"))
    set_back(store, 1)
    shutil.rmtree(config.state_path / "releases" / "signatures")
    with pytest.raises(Unsigned):
        start(config)


@pytest.mark.parametrize("keys", [(), (OPS.public,)])
def test_it_does_not_start_where_a_deletion_was_dropped(
    config: ServingConfig, store: Store, promote: Callable[..., ChannelEntry], keys: tuple[str, ...]
) -> None:
    """An entry written without the checks of a promote, however well it is signed."""
    config = config.model_copy(update={"trusted_keys": keys})
    remember(config, promote("a", "b"))
    entry = promote("a", allow_uncover=True, reason="to be erased from the entry")
    silent = entry.model_copy(update={"uncovers": ()})
    path = Path(store.url) / "channels" / "production" / f"{2:020d}.json"
    path.write_bytes(silent.to_bytes())
    store.sign_channel("production", OPS)
    with pytest.raises(DropsDeletions, match="generation 2: what was applied before covers b"):
        start(config)
    path.write_bytes(entry.to_bytes())
    assert start(config).entry == entry


def test_damaged_memory_does_not_keep_a_sound_channel_from_being_served(
    config: ServingConfig, promote: Callable[..., ChannelEntry]
) -> None:
    entry = promote("a")
    remember(config, entry)
    (config.state_path / "last_applied.json").write_bytes(b"{")
    assert start(config).entry == entry


def test_only_the_release_applied_last_is_kept(config: ServingConfig, promote: Callable[..., ChannelEntry]) -> None:
    """All of them would fill the disk that the server needs to be able to start on."""
    for ids in (("a",), ("a", "b"), ("a", "b", "c")):
        remember(config, entry := promote(*ids))
    kept = {path.name for path in (config.state_path / "releases").glob("*/*")}
    assert kept == {entry.release, entry.digest}


class TestMark:
    """What is kept is taken for what was served last only where it is: the rest of a start is as if nothing was."""

    @pytest.fixture
    def last(self, config: ServingConfig) -> LastApplied:
        return LastApplied(config.state_path, config.trusted_keys)

    @pytest.mark.parametrize("allow_plain", [False, True])
    @pytest.mark.parametrize("kept", [False, True])
    def test_killed_between_going_live_and_being_kept(
        self,
        config: ServingConfig,
        store: Store,
        promote: Callable[..., ChannelEntry],
        last: LastApplied,
        kept: bool,
        allow_plain: bool,
    ) -> None:
        """Without the mark this would start on the plain model, or on a release that knows case b again."""
        config = config.model_copy(update={"allow_plain": allow_plain})
        last.mark(None)
        if kept:
            last.mark(entry := promote("a"))
            remember(config, entry)
        last.mark(newest := promote("a", "b"))
        away = Path(store.url).rename(Path(store.url).with_name("away"))
        got = "generation 1" if kept else "nothing"
        with pytest.raises(NotEnforced, match=rf"served-0+{newest.generation}-.*, got {got}: "):
            find_starting_point(config, None)
        away.rename(store.url)
        assert start(config).entry == newest

    def test_an_undone_swap_is_taken_back(
        self, config: ServingConfig, store: Store, promote: Callable[..., ChannelEntry], last: LastApplied
    ) -> None:
        last.mark(first := promote("a"))
        remember(config, first)
        last.mark(promote("a", "b"))
        last.mark(first)
        shutil.rmtree(store.url)
        assert start(config).entry == first

    def test_a_full_disk_does_not_keep_it_from_being_made(
        self, config: ServingConfig, promote: Callable[..., ChannelEntry], last: LastApplied
    ) -> None:
        last.mark(None)
        entry = promote("a")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            last.mark(entry)
            with pytest.raises(OSError, match="too large"):
                (config.state_path / "file").write_bytes(b"disk full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert last.marked == (entry.generation, entry.digest)

    @pytest.mark.parametrize(("changed", "to"), [(b'"generation":1', b'"generation":9'), (b'"test"', b'"rest"')])
    def test_a_kept_entry_that_was_changed_on_disk(
        self, config: ServingConfig, store: Store, promote: Callable[..., ChannelEntry], changed: bytes, to: bytes
    ) -> None:
        """Without keys nothing else tells: it is a sound entry of a sound release."""
        config = config.model_copy(update={"trusted_keys": ()})
        LastApplied(config.state_path).mark(entry := promote("a"))
        remember(config, entry)
        path = config.state_path / "last_applied.json"
        path.write_bytes(path.read_bytes().replace(changed, to))
        shutil.rmtree(store.url)
        with pytest.raises(NotEnforced, match=r"served-0+1-"):
            start(config)

    def test_a_store_that_was_set_back_below_it(
        self, config: ServingConfig, store: Store, promote: Callable[..., ChannelEntry], last: LastApplied
    ) -> None:
        """Only the mark remembers generation 2: the disk was full when it went live."""
        remember(config, promote("a"))
        last.mark(promote("a", "b"))
        set_back(store, 1)
        with pytest.raises(NotEnforced, match=r"served-0+2-"):
            start(config)
        promote("a", allow_uncover=True, reason="another generation 2")
        with pytest.raises(NotEnforced, match=r"served-0+2-"):
            start(config)


@pytest.mark.parametrize("key", ["", "AB" * 32, "../x", "0" * 63])
def test_a_setting_that_is_no_key(tmp_path: Path, key: str) -> None:
    with pytest.raises(NotEnforced, match=r"unlearn.trusted_keys.0: String should match pattern"):
        ServingConfig.from_additional_config({"unlearn": {"store": "s", "trusted_keys": [key]}})


def test_serving_opens_stores_with_its_trusted_keys_only() -> None:
    """Whoever adds another `Store.open` to serving goes past the keys: open it with `ServingConfig.open_store`."""
    folder = Path(next(iter(unlearn_serve.serving.__path__)))
    found = {
        path.name
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr == "open"
        and isinstance(node.value, ast.Name)
        and node.value.id in ("Store", "Backend")
    }
    assert found == {"config.py", "last_applied.py"}
