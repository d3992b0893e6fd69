"""`promote --wait`, `rollback --wait` and `status --fleet` against real admin routes over HTTP."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support.command_line import Done, Run
from support.fleet import answering, http, mount
from support.server import ADMIN_KEY, free_port, wait_until

from unlearn_serve.store import Store

FOREVER = "100000"
"""A wait that is to end by itself: were it left to its timeout, pytest's own would end the test."""


@pytest.fixture
def fleet(tmp_path: Path) -> Callable[..., Path]:
    """Write a fleet file of servers by name."""

    def write(**servers: str | dict[str, str]) -> Path:
        path = tmp_path / "fleet.yaml"
        rows = [{"name": name, **({"url": one} if isinstance(one, str) else one)} for name, one in servers.items()]
        path.write_text(yaml.safe_dump({"schema": "unlearn-serve/fleet/1", "servers": rows}))
        return path

    return write


@pytest.fixture
def promote(run: Run, store: Store) -> Callable[..., Done]:
    def call(release: str, *more: str | Path) -> Done:
        return run("promote", release, "--store", store.url, "--wait", *more)

    return call


def generation_of(url: str) -> int:
    headers = {"X-Unlearn-Admin-Key": ADMIN_KEY}
    return httpx.get(f"{url}/v1/unlearning/status", headers=headers).json()["live"]["generation"]


def test_promote_and_rollback_return_when_every_server_is_live(
    start: Callable[..., str], releases: list[str], promote: Callable[..., Done], run: Run, store: Store
) -> None:
    urls = [start() for _ in range(3)]
    at = [part for url in urls for part in ("--url", url)]

    done = promote(releases[1], *at, "--timeout", FOREVER)

    assert done.code == 0, done.stderr
    assert [generation_of(url) for url in urls] == [2, 2, 2]
    assert f"production generation 2 -> {releases[1]}" in done.stdout
    assert "3 of 3 live on generation 2 of channel production" in done.stdout

    back = run("rollback", "--store", store.url, "--wait", *at, "--timeout", FOREVER)
    assert back.code == 0, back.stderr
    assert [generation_of(url) for url in urls] == [3, 3, 3]


def test_a_refusal_is_told_without_waiting_for_the_timeout(
    start: Callable[..., str], releases: list[str], promote: Callable[..., Done], fleet: Callable[..., Path]
) -> None:
    """One server's buffers are too small for the second release; the other takes it."""
    servers = fleet(fits=start(), small=start(max_rank=4))

    done = promote(releases[1], "--fleet", servers, "--timeout", FOREVER)

    assert done.code == 3
    assert "1 of 2 live on generation 2" in done.stdout
    assert "fits: live" in done.stderr.splitlines()
    refusals = [line for line in done.stderr.splitlines() if line.startswith("small: refused: generation 2: SwapError")]
    assert len(refusals) == 2, "told at once, and named at the end"
    assert "expected rank <= 4 (max_rank), got 8" in refusals[0]


def test_who_will_not_become_live_is_named_without_waiting(
    start: Callable[..., str],
    releases: list[str],
    promote: Callable[..., Done],
    fleet: Callable[..., Path],
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTHER_KEY", "wrong")
    store.promote(releases[0], "staging", actor="test")
    other = Store.open(str(mount(tmp_path / "store", tmp_path / "other")))
    other.promote(releases[0], "production", actor="test")
    with http(answering(200, "<html>hello</html>")) as website:
        servers = fleet(
            good=start(),
            staging=start(channel="staging"),
            other=start(tmp_path / "other"),
            key={"url": start(), "admin_key_variable": "OTHER_KEY"},
            website=website,
        )
        done = promote(releases[1], "--fleet", servers, "--timeout", FOREVER)

    assert done.code == 3
    assert done.stdout.splitlines()[-1] == "1 of 5 live on generation 2 of channel production"
    last = _last_lines(done)
    for name, words in {
        "good": "good: live",
        "staging": "staging: foreign: expected a follower of channel 'production', got one of 'staging'",
        "other": f"other: foreign: expected release {releases[1]} as generation 2, got {releases[0]}: another store?",
        "key": "key: foreign: expected status 200, got 401: ",
        "website": "website: foreign: expected the status of unlearn-serve as JSON, got '<html>hello</html>'",
    }.items():
        assert last[name].startswith(words)
    assert "(keys sent: OTHER_KEY, VLLM_API_KEY)" in last["key"]
    assert "wrong" not in last["key"]


def test_who_is_late_is_named_at_the_timeout(
    start: Callable[..., str],
    releases: list[str],
    promote: Callable[..., Done],
    fleet: Callable[..., Path],
    tmp_path: Path,
) -> None:
    away = mount(tmp_path / "store", tmp_path / "away")
    with http(answering(500, "no")) as failing:
        servers = fleet(away=start(away), down=f"http://127.0.0.1:{free_port()}", failing=failing)
        shutil.rmtree(away)
        done = promote(releases[1], "--fleet", servers, "--timeout", "3")

    assert done.code == 3
    last = _last_lines(done)
    assert last["away"].startswith("away: behind: store ")
    assert last["down"].startswith("down: unreachable: no answer: ")
    assert last["failing"] == "failing: unreachable: expected status 200, got 500: no"


@pytest.mark.parametrize("options", [(), ("--fleet", "FILE", "--url", "http://127.0.0.1:9")], ids=["none", "both"])
def test_it_is_not_moved_where_nobody_can_be_waited_for(
    options: tuple[str, ...], releases: list[str], promote: Callable[..., Done], store: Store
) -> None:
    assert promote(releases[1], *options).code == 2
    assert store.channel("production").generation == 1


def test_it_is_not_moved_without_the_admin_key_or_the_fleet_file(
    releases: list[str], promote: Callable[..., Done], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNLEARN_ADMIN_KEY", raising=False)

    without_key = promote(releases[1], "--url", "http://127.0.0.1:9")
    without_file = promote(releases[1], "--fleet", tmp_path / "nowhere.yaml")

    assert (without_key.code, without_file.code) == (1, 1)
    assert "environment variable UNLEARN_ADMIN_KEY, got none" in without_key.stderr
    assert "expected a readable fleet file" in without_file.stderr
    assert store.channel("production").generation == 1


def test_a_list_of_servers_without_wait_is_no_wait(releases: list[str], run: Run, store: Store) -> None:
    """Forgotten --wait: it must not look as if all were live."""
    done = run("promote", releases[1], "--store", store.url, "--url", "http://127.0.0.1:9")

    assert done.code == 2
    assert store.channel("production").generation == 1


def test_status_of_a_fleet(
    start: Callable[..., str], releases: list[str], run: Run, fleet: Callable[..., Path], store: Store
) -> None:
    servers = fleet(one=start(), small=start(max_rank=4))
    even = run("status", "--fleet", servers)
    assert even.code == 0, even.stderr
    assert "2 of 2 live on generation 1 of channel production" in even.stdout

    store.promote(releases[1], "production", actor="test")
    states = {"one": ("live", 2), "small": ("refused", 1)}
    document = wait_until(lambda: found if _states(found := _json(run, servers)) == states else None, "both have tried")
    uneven = run("status", "--fleet", servers)

    assert uneven.code == 3
    assert "1 of 2 live on generation 2" in uneven.stdout
    assert "small: refused: generation 2: SwapError" in uneven.stderr
    assert (document["generation"], document["release"], document["live"]) == (2, releases[1], False)


def test_status_beside_the_store_knows_what_no_server_does(
    start: Callable[..., str], releases: list[str], run: Run, store: Store, tmp_path: Path
) -> None:
    url = start(mount(tmp_path / "store", tmp_path / "mounted"))
    store.promote(releases[1], "production", actor="test")

    assert run("status", "--url", url).code == 0
    beside = run("status", "--url", url, "--store", store.url)

    assert beside.code == 3
    assert "0 of 1 live on generation 2 of channel production" in beside.stdout
    assert "behind" in beside.stderr


def test_the_plain_model_is_not_live(start: Callable[..., str], run: Run, tmp_path: Path) -> None:
    Store.open(str(tmp_path / "empty"), create=True)
    urls = [start(tmp_path / "empty") for _ in range(2)]

    done = run("status", *(part for url in urls for part in ("--url", url)))

    assert done.code == 3
    assert done.stderr.count("behind: it serves the plain model") == 2


def _last_lines(done: Done) -> dict[str, str]:
    """What was said last of each server."""
    return {line.partition(": ")[0]: line for line in done.stderr.splitlines()}


def _json(run: Run, servers: Path) -> dict[str, Any]:
    return json.loads(run("status", "--fleet", servers, "--json").stdout)


def _states(document: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return {one["name"]: (one["state"], one["status"]["live"]["generation"]) for one in document["servers"]}
