"""The wait itself, and how answers are judged."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fleet import answering, damage, http, mount
from support.server import ADMIN_KEY

from unlearn_serve.fleet import (
    Answer,
    Report,
    Server,
    State,
    Target,
    ask_all,
    judge,
    newest,
    servers_at,
    wait_until_live,
)
from unlearn_serve.fleet.ask import Status
from unlearn_serve.store import Store

ONE, OTHER = "1" * 64, "2" * 64


def test_what_is_repaired_while_another_is_waited_for_is_live_in_the_end(
    start: Callable[..., str], releases: list[str], adapters: list[Path], store: Store, tmp_path: Path
) -> None:
    """A refusal is told at once, but it is not final: here the damaged release is published anew."""
    folder = tmp_path / "store"
    mounts = [mount(folder, tmp_path / name) for name in ("near", "far")]
    near, far = (start(one) for one in mounts)
    shutil.rmtree(mounts[0])
    target = Target.of(store.promote(releases[1], "production", actor="test"))
    damage(folder, releases[1])
    mount(folder, mounts[0])
    store.publish(adapters[1])
    seen: list[tuple[str, State]] = []

    def changed(report: Report) -> None:
        seen.append((report.answer.server.url, report.state))
        if seen[-1] == (near, "refused"):
            Store.open(str(mounts[0])).publish(adapters[1])
            httpx.post(f"{near}/v1/unlearning/apply", headers={"X-Unlearn-Admin-Key": ADMIN_KEY}).raise_for_status()
        if seen[-1] == (near, "live"):
            shutil.rmtree(mounts[1])
            mount(folder, mounts[1])

    reports = asyncio.run(wait_until_live(servers_at([near, far]), target, timeout=100000, changed=changed))

    assert [report.state for report in reports] == ["live", "live"]
    assert (near, "refused") in seen
    assert next(state for url, state in seen if url == far) == "behind"


def test_who_never_answers_is_named_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and says nothing: hung, not gone."""

    async def hang(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    with http(hang) as url:
        (report,) = asyncio.run(wait_until_live(servers_at([url]), TARGET, timeout=0.2, changed=lambda _: None))

    assert (report.state, report.problem) == ("unreachable", "no answer within 0.2 s")


TARGET = Target(channel="production", generation=2, release=ONE)


def status(*, generation: int = 2, release: str = ONE, **changes: Any) -> dict[str, Any]:
    """What a server says; live on TARGET unless told otherwise."""
    return {
        "live": {"release": release, "generation": generation, "since": 1.0},
        "enforced": True,
        "channel": "production",
        "seen_generation": generation,
        "store_error": None,
        "refused": None,
        "broken": None,
        "workers": [{"rank": 0, "release": release}],
        **changes,
    }


@pytest.mark.parametrize(
    ("said", "state", "problem"),
    [
        (status(), "live", None),
        (status(generation=3, release=OTHER), "live", None),
        (status(generation=9, release=OTHER, store_error="no longer holds"), "behind", "no longer holds"),
        (status(store_error="no such folder"), "live", "no such folder"),
        (status(refused="generation 3: DigestError: x", seen_generation=3), "live", "generation 3: DigestError: x"),
        (status(generation=1, release=OTHER), "behind", None),
        (status(generation=1, store_error="no such folder"), "behind", "no such folder"),
        (status(generation=1, seen_generation=2, refused="generation 2: x"), "refused", "generation 2: x"),
        (status(generation=1, seen_generation=3, refused="generation 3: x"), "refused", "generation 3: x"),
        (status(generation=0, refused="generation 1: x", seen_generation=1), "behind", None),
        (status(broken="not undone"), "broken", "not undone"),
        (status(channel="staging"), "foreign", "expected a follower of channel 'production', got one of 'staging'"),
        (status(release=OTHER), "foreign", f"expected release {ONE} as generation 2, got {OTHER}: another store?"),
        (
            status(enforced=False, workers=[{"rank": 0, "release": ONE}, {"rank": 1, "release": None}]),
            "behind",
            f"expected every worker on {ONE[:16]}, got 0: {ONE[:16]}, 1: plain",
        ),
        (status(enforced=False, workers=[]), "behind", f"expected every worker on {ONE[:16]}, got no worker"),
        (status(generation=1, store_error="two\nlines\x1b[2J"), "behind", "two lines [2J"),
    ],
)
def test_an_answer_is_judged_beside_the_channel(said: dict[str, Any], state: State, problem: str | None) -> None:
    report = judge(Answer(server=Server(url="http://a"), status=Status.model_validate(said), raw=said), TARGET)
    assert (report.state, report.problem) == (state, problem)


@pytest.mark.parametrize(
    ("code", "body", "error", "final"),
    [
        (200, "[]", "got one in which all: ", True),
        (200, json.dumps(status(enforced="yes")), "got one in which enforced: ", True),
        (200, json.dumps(status(release="../up")), "got one in which live.release: ", True),
        (200, '{"live": {}}', "got one in which live.release: Field required", True),
        (200, json.dumps(status() | {"live": {"release": ONE, "generation": 2, "since": 1e300}}), "live.since: ", True),
        (200, "[" * 100_000, "expected the status of unlearn-serve as JSON", True),
        (404, '{"error": {"message": "Not\\nFound"}}', "expected status 200, got 404: Not Found", True),
        (307, "", "expected status 200, got 307: ", True),
        (429, '{"error": {"message": "too many"}}', "expected status 200, got 429: too many", False),
        (502, "<html>bad gateway</html>", "expected status 200, got 502: <html>bad gateway</html>", False),
    ],
)
def test_what_is_no_status_is_an_error_and_no_traceback(code: int, body: str, error: str, final: bool) -> None:
    with http(answering(code, body, location="/elsewhere")) as url:
        (answer,) = asyncio.run(ask_all(servers_at([url])))

    assert answer.status is None
    assert error in str(answer.error)
    assert answer.final is final


def test_the_keys_go_to_the_server_that_is_listed_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect must not carry the admin key to wherever it points."""
    monkeypatch.setenv("UNLEARN_ADMIN_KEY", "admin,the-one-before")
    monkeypatch.setenv("VLLM_API_KEY", "api")
    reached: list[dict[bytes, bytes]] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        reached.append(dict(scope["headers"]))
        await answering(200, json.dumps(status()))(scope, receive, send)

    with http(note) as goal, http(answering(302, "", location=goal)) as redirecting:
        asyncio.run(ask_all(servers_at([redirecting])))
        assert reached == []
        asyncio.run(ask_all(servers_at([goal])))

    (headers,) = reached
    assert (headers[b"x-unlearn-admin-key"], headers[b"authorization"]) == (b"admin", b"Bearer api")


def test_without_the_store_the_newest_that_any_server_has_seen_counts() -> None:
    def answer(**said: Any) -> Answer:
        return Answer(server=Server(url="http://a"), status=Status.model_validate(status(**said)))

    silent = Answer(server=Server(url="http://b"), error="no answer")
    behind, ahead = answer(generation=2), answer(generation=3, release=OTHER)
    refuses, elsewhere = answer(generation=2, seen_generation=4), answer(generation=9, channel="staging")

    assert newest([silent, behind, ahead, elsewhere], "production") == Target(
        channel="production", generation=3, release=OTHER
    )
    assert newest([behind, refuses], "production") == Target(channel="production", generation=4, release=None)
    assert newest([silent], "production") == Target(channel="production", generation=0, release=None)
