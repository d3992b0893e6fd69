"""A real server of two data parallel engines and two API servers: one swap for all of them, or none."""

import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import psutil
import pytest
from support.adapters import write_random_adapter
from support.file_limits import no_more_files
from support.server import (
    ADMIN_KEY,
    GENEROUS_SECONDS,
    MODEL_NAME,
    POLLS_SECONDS,
    Server,
    running,
    serve_command,
    stream_chat,
    wait_until,
)
from support.stopped import stopped
from support.tiny_models import write_tiny_model

from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.store import Store

pytestmark = [pytest.mark.engine, pytest.mark.model]

ENGINES = (0, 1)
API_SERVERS = (0, 1)
PROMPT = "Once upon a time"
POSITIONS = 8192
FLAGS = ("--data-parallel-size", "2", "--api-server-count", "2", "--max-rank", "16", "--max-model-len", str(POSITIONS))
ON_API_SERVER = re.compile(r"\(ApiServer_(\d) pid=(\d+)\)")
READY_LATE = re.compile(r"\(ApiServer_1 pid=\d+\).*Starting vLLM server")


@dataclass
class World:
    """The server, at its public port and at its admin address, and two releases."""

    server: Server
    admin: Path
    store: Store
    releases: tuple[str, str]
    api_servers: dict[int, int]
    """Process ids by number."""
    named_by_the_late_one: str = ""
    """The generation in its first answer."""

    def admin_call(self, method: str, path: str) -> httpx.Response:
        headers = {"X-Unlearn-Admin-Key": ADMIN_KEY}
        transport = httpx.HTTPTransport(uds=str(self.admin))
        with httpx.Client(transport=transport, base_url="http://admin", timeout=GENEROUS_SECONDS) as client:
            return client.request(method, f"/v1/unlearning/{path}", headers=headers)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.admin_call("GET", "status").raise_for_status().json()
        return found

    def promote_other(self) -> tuple[str, int]:
        """Promote the release that is not live; returns it and its generation."""
        return self.promote_instead_of(self.status()["live"]["release"])

    def promote_instead_of(self, live: str) -> tuple[str, int]:
        other = next(one for one in self.releases if one != live)
        return other, self.store.promote(other, "production", actor="test").generation

    def wait_live(self, generation: int) -> None:
        wait_until(lambda: self.status()["live"]["generation"] == generation, f"generation {generation} goes live")

    def on_workers(self) -> list[tuple[int, int, str]]:
        return [(one["engine"], one["rank"], one["release"]) for one in self.status()["workers"]]

    @contextmanager
    def connection_to(self, number: int) -> Iterator[httpx.Client]:
        """A connection that API server `number` has accepted: each goes to the one with the fewest."""
        with ExitStack() as opened:

            def open_one() -> httpx.Client | None:
                client = opened.enter_context(httpx.Client(base_url=self.server.url, timeout=GENEROUS_SECONDS))
                answer = client.get("/health").raise_for_status()
                port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
                theirs = psutil.Process(self.api_servers[number]).net_connections("tcp")
                return client if any(one.raddr and one.raddr.port == port for one in theirs) else None

            yield wait_until(open_one, f"API server {number} accepts a connection")

    def answers(self) -> dict[tuple[int, int], tuple[str, str, str]]:
        """What each engine says through each API server: text, release and fingerprint."""
        found = {}
        for number in API_SERVERS:
            with self.connection_to(number) as client:
                for engine in ENGINES:
                    body = {"model": MODEL_NAME, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
                    to = {"X-data-parallel-rank": str(engine)}
                    answer = client.post("/v1/completions", json=body, headers=to).raise_for_status()
                    said = answer.json()
                    release = answer.headers["x-unlearn-release"]
                    found[number, engine] = (said["choices"][0]["text"], release, said["system_fingerprint"])
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data-parallel")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    tokenizer = ensure_checkpoint()
    return write_tiny_model(folder / "model", vocab_size=49152, tokenizer=tokenizer, max_position_embeddings=POSITIONS)


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return Store.open(str(folder / "store"), create=True)


@pytest.fixture(scope="module")
def releases(folder: Path, base: Path, store: Store) -> tuple[str, str]:
    """Two that cover the same request; the first is promoted."""
    adapters = [write_random_adapter(base, folder / str(seed), seed=seed, rank=16, scale=3.0) for seed in range(2)]
    first, second = (store.publish(adapter) for adapter in adapters)
    store.promote(first, "production", actor="test")
    return first, second


@pytest.fixture(scope="module")
def world(folder: Path, base: Path, store: Store, releases: tuple[str, str]) -> Iterator[World]:
    """The second API server is held up at its start, until a swap has been made."""
    admin = folder / "admin.sock"
    flags = (*FLAGS, "--admin-listen", f"unix:{admin}")
    command = serve_command(base, folder / "store", folder / "state", *flags)
    with running(command, log=folder / "server.log", headers={}, UNLEARN_ADMIN_KEY=ADMIN_KEY) as server:

        def api_servers() -> dict[int, int] | None:
            assert server.process.poll() is None, server.output[-6000:]
            found = {int(number): int(pid) for number, pid in ON_API_SERVER.findall(server.output)}
            return found if len(found) == len(API_SERVERS) else None

        pids = wait_until(api_servers, "both API servers say something")
        psutil.Process(pids[1]).send_signal(signal.SIGSTOP)
        server.wait_ready()
        started = World(server, admin, store, releases, pids)
        _, generation = started.promote_other()
        started.wait_live(generation)
        psutil.Process(pids[1]).send_signal(signal.SIGCONT)
        wait_until(lambda: READY_LATE.search(server.output), "the late API server starts")
        with started.connection_to(1) as late:
            started.named_by_the_late_one = late.get("/health").headers["x-unlearn-generation"]
        yield started


def test_an_api_server_that_comes_late_starts_on_the_current_release(world: World) -> None:
    assert world.named_by_the_late_one == "2"


def test_every_engine_answers_under_the_release_that_every_api_server_names(world: World) -> None:
    """The bugs: a client that reaches the first engine only; an API server that goes on naming what it started on."""
    before = world.answers()
    release, generation = world.promote_other()
    world.wait_live(generation)
    after = world.answers()

    assert sorted(world.on_workers()) == [(engine, 0, release) for engine in ENGINES]
    for answers, live in ((before, {r for r in world.releases if r != release}), (after, {release})):
        texts, releases, _ = zip(*answers.values(), strict=True)
        assert len(set(texts)) == 1, answers
        assert set(releases) == live
    assert {fingerprint for _, _, fingerprint in after.values()} == {f"unlearn-{release[:16]}-g{generation}"}
    assert {text for text, _, _ in before.values()} != {text for text, _, _ in after.values()}
    with world.server.client() as client:
        assert client.get("/v1/unlearning/status").status_code == 404, "admin calls have an address of their own"


def test_streams_of_both_api_servers_on_both_engines_go_on_under_the_new_release(world: World) -> None:
    """One API server pauses; what the other has sent waits, and is named, all the same."""
    count, tokens = 8, 1500
    accepted = [Event() for _ in range(count)]
    before = world.status()
    old = before["live"]["release"]
    with ThreadPoolExecutor(count) as pool:
        # However late this process gets its turns: not one token comes before all is under way.
        with stopped(*(worker["pid"] for worker in before["workers"])):
            streams = [
                pool.submit(stream_chat, world.server, f"{PROMPT} {number}", tokens=tokens, accepted=event.set)
                for number, event in enumerate(accepted)
            ]
            assert all(event.wait(GENEROUS_SECONDS) for event in accepted)
            release, generation = world.promote_instead_of(old)
            time.sleep(POLLS_SECONDS)
        world.wait_live(generation)
        found = [one.result() for one in streams]

    assert {one.release for one in found} == {old}, "they began before"
    assert {one.fingerprint for one in found} == {f"unlearn-{release[:16]}-g{generation}"}, "and ended after"
    assert {(one.finish_reason, one.completion_tokens) for one in found} == {("length", tokens)}
    assert world.server.sample("unlearn_generation", channel="production") == generation, "one sample for all"
    counted = world.server.tokens(old, str(generation - 1))["generated"]
    counted_after = world.server.tokens(release, str(generation))["generated"]
    assert counted > 0
    assert counted_after > 0


def test_an_engine_that_cannot_stage_keeps_all_on_the_earlier_release(world: World) -> None:
    before = world.answers()
    (failing,) = [one["pid"] for one in world.status()["workers"] if one["engine"] == 1]
    with no_more_files(failing):
        release, generation = world.promote_other()
        refused = wait_until(lambda: world.status()["refused"], "it is refused")
        assert {one for _, _, one in world.on_workers()} == {before[0, 0][1]}
        assert world.answers() == before
    assert refused.startswith(f"generation {generation}: SwapError: worker 0 of engine 1 could not stage {release}")

    world.admin_call("POST", "apply").raise_for_status()
    world.wait_live(generation)
    assert {one for _, _, one in world.on_workers()} == {release}
    assert {named for _, named, _ in world.answers().values()} == {release}


def test_where_the_api_server_that_swaps_ends_none_serves_on(world: World) -> None:
    """Or no deletion would ever go live again: vLLM lets the others be where one ends with status 0."""
    with world.connection_to(1) as other:
        psutil.Process(world.api_servers[0]).terminate()

        wait_until(lambda: other.get("/health").status_code == 503, "the other serves no longer")
        refused = other.post("/v1/completions", json={"model": MODEL_NAME, "prompt": PROMPT})
        assert refused.status_code == 503
        assert "the API server that follows the channel has ended" in refused.text

    psutil.Process(world.api_servers[1]).kill()
    assert world.server.process.wait(GENEROUS_SECONDS) != 0


def test_a_route_is_computed_by_every_engine(folder: Path, base: Path, releases: tuple[str, str]) -> None:
    """Each engine has a LoRA manager of its own, and a request may go to any."""
    flags = ("--data-parallel-size", "2", "--api-server-count", "1", "--max-rank", "16", "--routes", "2")
    command = serve_command(base, folder / "store", folder / "state-of-routes", *flags)
    texts: dict[str, set[str]] = {}
    with running(command, log=folder / "routes.log", headers={}) as server:
        server.wait_ready()
        with server.client() as client:
            for release, engine in product(releases, ENGINES):
                body = {"model": f"{MODEL_NAME}@{release}", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
                to = {"X-data-parallel-rank": str(engine)}
                answer = client.post("/v1/completions", json=body, headers=to).raise_for_status()
                assert answer.headers["x-unlearn-release"] == release
                texts.setdefault(release, set()).add(answer.json()["choices"][0]["text"])

    first, second = texts.values()
    assert len(first) == len(second) == 1
    assert first != second
