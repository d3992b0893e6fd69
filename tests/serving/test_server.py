"""A real server on a real model, from its start over swaps, refusals and an absent store to a restart."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from support.adapters import write_random_adapter
from support.server import (
    ADMIN_KEY,
    API_KEY,
    CLI,
    GENEROUS_SECONDS,
    MODEL_NAME,
    POLLS_SECONDS,
    Server,
    running,
    serve_command,
    server_environment,
    stream_chat,
    wait_until,
)
from support.stopped import stopped
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.serving.records import SwapRecord
from unlearn_serve.store import Backend, ChannelEntry, Store
from unlearn_serve.store.channel_entry import entry_path

pytestmark = [pytest.mark.engine, pytest.mark.model]

CHANNEL = "production"
MAX_RANK = 16
ROUTES = (("GET", "status"), ("GET", "history"), ("POST", "apply"), ("POST", "rollback"))
PROMPT = "What is the capital of France?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return Store.open(str(folder / "store"), create=True)


@pytest.fixture(scope="module")
def publish(folder: Path, store: Store) -> Callable[..., str]:
    """Publish a random adapter for the real model; equal arguments give the same release.

    All cover the same deletion request, so that any may follow any.
    """

    def make(name: str, **options: Any) -> str:
        seed = sum(name.encode())
        path = folder / "adapters" / name
        return store.publish(
            write_random_adapter(ensure_checkpoint(), path, deletion_id="case-1", seed=seed, **options)
        )

    return make


@pytest.fixture(scope="module")
def releases(publish: Callable[..., str]) -> tuple[str, str]:
    """Two releases; whichever is not live is the next to be promoted."""
    return publish("first", scale=0.3), publish("second", scale=0.3)


@pytest.fixture(scope="module")
def server(folder: Path, store: Store, releases: tuple[str, str]) -> Iterator[Server]:
    store.promote(releases[0], CHANNEL, actor="test")
    command = serve_command(
        ensure_checkpoint(), folder / "store", folder / "state", "--max-rank", str(MAX_RANK), "--api-key", API_KEY
    )
    headers = {"Authorization": f"Bearer {API_KEY}", "X-Unlearn-Admin-Key": ADMIN_KEY}
    with running(command, log=folder / "server.log", headers=headers, UNLEARN_ADMIN_KEY=ADMIN_KEY) as started:
        started.wait_ready()
        yield started


@pytest.fixture
def follow(server: Server, store: Store, releases: tuple[str, str]) -> Callable[[], str]:
    """Promote the release that is not live and wait until it is; returns its digest."""

    def move() -> str:
        release = _other(releases, server.status()["live"]["release"])
        server.wait_live(store.promote(release, CHANNEL, actor="test").generation)
        return release

    return move


def test_it_starts_on_the_promoted_release(server: Server, releases: tuple[str, str]) -> None:
    status = server.status()

    assert status["live"]["release"] == releases[0]
    assert status["live"]["generation"] == 1
    assert status["live"]["deletion_ids"] == ["case-1"]
    assert status["enforced"] is True
    assert [worker["release"] for worker in status["workers"]] == [releases[0]]
    assert status["workers"][0]["sites"] == list(range(30))


def test_every_response_names_the_live_release(server: Server, follow: Callable[[], str]) -> None:
    release = follow()
    fingerprint = server.status()["live"]["fingerprint"]

    whole = _complete(server, "/v1/chat/completions", messages=[{"role": "user", "content": PROMPT}])
    text = _complete(server, "/v1/completions", prompt=PROMPT)
    streamed = stream_chat(server, PROMPT, tokens=4)

    assert fingerprint.startswith(f"unlearn-{release[:16]}-g")
    for response in (whole, text):
        assert response.headers["x-unlearn-release"] == release
        assert response.json()["system_fingerprint"] == fingerprint
    assert (streamed.release, streamed.fingerprint) == (release, fingerprint)
    with server.client() as client:
        assert client.get("/health").headers["x-unlearn-release"] == release


def test_a_swap_under_load_keeps_every_stream_and_process(
    server: Server, store: Store, releases: tuple[str, str]
) -> None:
    before = server.status()
    new = _other(releases, before["live"]["release"])
    old = before["live"]["release"], str(before["live"]["generation"])
    generated = server.tokens(*old)["generated"]
    tokens, count = 120, 8
    accepted = [Event() for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        # However late this process gets its turns: not one token comes before all is under way.
        with stopped(*(worker["pid"] for worker in before["workers"])):
            streams = [
                pool.submit(
                    stream_chat, server, f"Tell me about the number {number}.", tokens=tokens, accepted=event.set
                )
                for number, event in enumerate(accepted)
            ]
            assert all(event.wait(GENEROUS_SECONDS) for event in accepted)
            entry = store.promote(new, CHANNEL, actor="test")
            time.sleep(POLLS_SECONDS)
        after = server.wait_live(entry.generation)
        done = [stream.result(GENEROUS_SECONDS) for stream in streams]

    # A stream that spans the swap: begun under the old release, ended under the new one.
    assert server.tokens(*old)["generated"] > generated
    assert {stream.release for stream in done} == {before["live"]["release"]}
    assert {stream.fingerprint for stream in done} == {f"unlearn-{new[:16]}-g{entry.generation}"}
    assert {(stream.finish_reason, stream.completion_tokens) for stream in done} == {("length", tokens)}
    assert _pids(after) == _pids(before)
    assert server.process.poll() is None
    assert after["last_swap"]["release"] == new
    assert after["last_swap"]["previous_release"] == before["live"]["release"]
    for duration in ("stage_ms", "stall_ms", "publish_to_live_ms"):
        assert after["last_swap"][duration] > 0


def test_rollback_by_command_line(server: Server, folder: Path, follow: Callable[[], str]) -> None:
    before = server.status()["live"]["release"]
    follow()

    moved = _cli("rollback", "--store", str(folder / "store"), "--channel", CHANNEL, "--reason", "by hand")

    generation = int(moved.split("generation ")[1].split()[0])
    assert server.wait_live(generation)["live"]["release"] == before


def test_rollback_over_http(server: Server, store: Store, publish: Callable[..., str]) -> None:
    before = server.status()["live"]
    server.wait_live(store.promote(publish("third", scale=0.3), CHANNEL, actor="test").generation)

    with server.client() as client:
        body = {"reason": "over http", "actor": "tester"}
        answer = client.post("/v1/unlearning/rollback", json=body).raise_for_status().json()

    live = server.wait_live(answer["generation"])["live"]
    assert live["release"] == before["release"]
    entry = store.channel(CHANNEL)
    assert (entry.action, entry.actor, entry.reason) == ("rollback", "tester", "over http")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"to_generation": 10**6}, 400, "expected one of generations 1 to"),
        ({"to_generation": 1, "reason": "two\nlines"}, 400, "reason"),
        ({"to": 1}, 400, "Extra inputs are not permitted"),
    ],
)
def test_a_bad_rollback_changes_nothing(
    server: Server, store: Store, body: dict[str, Any], status: int, message: str
) -> None:
    before = store.channel(CHANNEL)

    with server.client() as client:
        response = client.post("/v1/unlearning/rollback", json=body)

    assert response.status_code == status
    assert message in response.text
    assert store.channel(CHANNEL) == before


def test_apply_does_not_wait_for_the_next_poll(server: Server, store: Store, releases: tuple[str, str]) -> None:
    new = _other(releases, server.status()["live"]["release"])
    entry = store.promote(new, CHANNEL, actor="test")

    with server.client() as client:
        applied = client.post("/v1/unlearning/apply").raise_for_status().json()["applied"]
        again = client.post("/v1/unlearning/apply").raise_for_status().json()["applied"]

    assert applied is None or applied["generation"] == entry.generation  # None: the follower's own poll was first
    assert again is None
    assert server.status()["live"]["generation"] == entry.generation


def test_history_and_audit_log_agree(server: Server, follow: Callable[[], str]) -> None:
    release = follow()

    with server.client() as client:
        history = client.get("/v1/unlearning/history").raise_for_status().json()

    events = [SwapRecord.model_validate(event) for event in history["events"]]
    assert events == _audit(Path(history["audit_log"]))
    assert (events[0].event, events[0].generation) == ("start", 1)
    assert (events[-1].event, events[-1].release, events[-1].actor) == ("swap", release, "test")
    generations = [event.generation for event in events if event.ok and event.generation]
    assert generations == sorted(generations)


def test_status_by_command_line(server: Server) -> None:
    live = server.status()["live"]

    keys = {"UNLEARN_ADMIN_KEY": ADMIN_KEY, "VLLM_API_KEY": API_KEY}
    shown = _cli("status", "--url", server.url, **keys)
    as_json = json.loads(_cli("status", "--url", server.url, "--json", **keys))

    assert live["release"] in shown.replace("\n", "")
    assert str(live["generation"]) in shown
    assert as_json["live"] == live


def test_status_by_command_line_without_the_key(server: Server) -> None:
    result = _run_cli("status", "--url", server.url, VLLM_API_KEY=API_KEY)

    assert result.returncode == 1
    assert "401" in result.stderr


def test_tokens_are_counted_under_the_release_they_were_computed_under(
    server: Server, follow: Callable[[], str]
) -> None:
    release = follow()
    generation = server.status()["live"]["generation"]
    before = server.tokens(release, str(generation))

    usage = _complete(server, "/v1/completions", prompt=PROMPT, max_tokens=11, ignore_eos=True).json()["usage"]

    after = wait_until(
        lambda: found if (found := server.tokens(release, str(generation))) != before else None, "the counters move"
    )
    assert after["generated"] - before["generated"] == usage["completion_tokens"] == 11
    assert after["prompt"] - before["prompt"] == usage["prompt_tokens"]
    labels = {"release": release, "generation": str(generation)}
    assert server.sample("unlearn_generation", channel=CHANNEL) == generation
    assert server.sample("unlearn_live", channel=CHANNEL, **labels) == 1
    assert server.sample("unlearn_finished_requests_total", **labels, reason="length") >= 1
    assert server.sample("unlearn_requests_total", release=release, status="200") >= 1


def test_metrics_tell_of_a_swap(server: Server, follow: Callable[[], str]) -> None:
    swaps = {"mode": "recompute", "outcome": "live"}
    histograms = ("stage", "stall", "publish_to_live")

    def counts() -> list[float]:
        return [
            server.sample("unlearn_swaps_total", **swaps),
            *(server.sample(f"unlearn_{name}_seconds_count") for name in histograms),
        ]

    before, earlier = counts(), server.status()["live"]
    follow()

    # The swap is live a moment before it is counted.
    wait_until(lambda: counts() == [count + 1 for count in before], "the swap is counted")
    assert all(server.sample(f"unlearn_{name}_seconds_sum") > 0 for name in histograms)
    assert server.sample("unlearn_drain_seconds_count") == 0
    gone = {"channel": CHANNEL, "release": earlier["release"], "generation": str(earlier["generation"])}
    assert server.sample("unlearn_live", **gone) == 0
    assert server.sample("unlearn_store_reachable") == 1
    looked = server.sample("unlearn_last_poll_timestamp_seconds")
    assert looked > earlier["since"]
    wait_until(lambda: server.sample("unlearn_last_poll_timestamp_seconds") > looked, "it looks again")


def test_a_corrupt_release_is_refused_and_goes_live_once_it_is_whole(
    server: Server, folder: Path, store: Store, publish: Callable[..., str]
) -> None:
    release = publish("corrupt", scale=0.3)
    weights = folder / "store" / "releases" / release / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    with _refusal(server, folder, release, store, "DigestError"):
        swaps = {"mode": "drain", "outcome": "refused"}
        before = server.sample("unlearn_swaps_total", **swaps)
        with server.client() as client:
            answer = client.post("/v1/unlearning/apply", json={"mode": "drain"})
        assert answer.status_code == 409
        assert "DigestError" in answer.text
        assert server.sample("unlearn_swaps_total", **swaps) == before + 1
        assert server.sample("unlearn_refusals_total", of="channel", error="SwapError") >= 1
        assert server.sample("unlearn_refused") == 1

    assert publish("corrupt", scale=0.3) == release, "publishing again repairs the stored bytes"
    with server.client() as client:
        client.post("/v1/unlearning/apply").raise_for_status()
    status = server.wait_live(store.channel(CHANNEL).generation)
    assert status["live"]["release"] == release
    assert status["refused"] is None
    assert server.sample("unlearn_refused") == 0


def test_apply_takes_only_the_modes_there_are(server: Server) -> None:
    with server.client() as client:
        answer = client.post("/v1/unlearning/apply", json={"mode": "hurry"})

    assert answer.status_code == 400
    assert "'recompute', 'drain' or 'abort'" in answer.text


def test_a_release_for_another_base_model_is_refused(
    server: Server, folder: Path, store: Store, follow: Callable[[], str]
) -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
    )
    LlamaForCausalLM(config).save_pretrained(folder / "other")
    release = store.publish(write_random_adapter(folder / "other", folder / "for-other"))

    with _refusal(server, folder, release, store, "BaseModelMismatch"):
        pass

    later = follow()
    assert server.status()["live"]["release"] == later
    assert server.status()["refused"] is None


def test_a_release_of_too_large_a_rank_is_refused(
    server: Server, folder: Path, store: Store, publish: Callable[..., str], follow: Callable[[], str]
) -> None:
    release = publish("wide", rank=2 * MAX_RANK, blocks=[0])

    with _refusal(server, folder, release, store, f"expected rank <= {MAX_RANK}"):
        pass

    follow()
    assert server.status()["refused"] is None


def test_it_serves_on_while_the_store_is_away(server: Server, folder: Path, follow: Callable[[], str]) -> None:
    release = server.status()["live"]["release"]

    with _store_away(folder):
        error = wait_until(lambda: server.status()["store_error"], "the absence is noticed")
        response = _complete(server, "/v1/completions", prompt=PROMPT)
        assert server.sample("unlearn_store_reachable") == 0
        with server.client() as client:
            apply = client.post("/v1/unlearning/apply")
            rollback = client.post("/v1/unlearning/rollback", json={})

    assert "no such folder" in error
    assert response.headers["x-unlearn-release"] == release
    assert (apply.status_code, rollback.status_code) == (503, 503)
    wait_until(lambda: server.status()["store_error"] is None, "the store's return is noticed")
    follow()
    seen = [record.event for record in _audit(_audit_log(folder))]
    assert seen.index("store-unreachable") < seen.index("store-reachable")
    assert seen.count("store-unreachable") == 1, "one event, however many polls fail"


@pytest.fixture(scope="module")
def restarted(server: Server, folder: Path, store: Store) -> Iterator[tuple[Server, dict[str, Any]]]:
    """The server, stopped and started anew while its store is away, and with no keys; with what was live before."""
    status = server.wait_live(store.channel(CHANNEL).generation)
    server.stop()
    flags = ("--max-rank", str(MAX_RANK), "--swap-mode", "abort")
    command = serve_command(ensure_checkpoint(), folder / "store", folder / "state", *flags)
    with _store_away(folder), running(command, log=folder / "restarted.log", headers={}) as started:
        started.wait_ready()
        yield started, status["live"]


def test_without_the_store_it_restarts_on_the_release_it_applied_last(
    restarted: tuple[Server, dict[str, Any]], folder: Path
) -> None:
    server, live = restarted

    response = _complete(server, "/v1/completions", prompt=PROMPT)

    assert response.headers["x-unlearn-release"] == live["release"]
    assert response.json()["system_fingerprint"] == live["fingerprint"]
    starts = [record for record in _audit(_audit_log(folder)) if record.event == "start"]
    assert [start.generation for start in starts] == [1, live["generation"]]


@pytest.mark.parametrize(("method", "route"), ROUTES)
@pytest.mark.parametrize("admin_key", [None, "", "wrong", ADMIN_KEY])
def test_with_no_admin_key_set_nobody_is_let_in(
    restarted: tuple[Server, dict[str, Any]], method: str, route: str, admin_key: str | None
) -> None:
    headers = {} if admin_key is None else {"X-Unlearn-Admin-Key": admin_key}

    response = httpx.request(method, f"{restarted[0].url}/v1/unlearning/{route}", headers=headers, timeout=60)

    assert response.status_code == 403
    assert "UNLEARN_ADMIN_KEY" in response.text


def test_in_mode_abort_a_swap_ends_what_runs_and_serves_what_comes(
    restarted: tuple[Server, dict[str, Any]], folder: Path, store: Store, releases: tuple[str, str]
) -> None:
    server, live = restarted
    new, begun = _other(releases, live["release"]), Event()

    with _store_back(folder), ThreadPoolExecutor(1) as pool:
        stream = pool.submit(stream_chat, server, "Tell me a long story.", tokens=450, begun=begun.set)
        assert begun.wait(GENEROUS_SECONDS)
        generation = store.promote(new, CHANNEL, actor="test").generation
        ended = stream.result(GENEROUS_SECONDS)
        wait_until(lambda: server.sample("unlearn_generation", channel=CHANNEL) == generation, "it goes live")

    assert (ended.release, ended.finish_reason) == (live["release"], "abort")
    assert 0 < ended.completion_tokens < 450
    labels = {"release": live["release"], "generation": str(live["generation"])}
    assert server.sample("unlearn_finished_requests_total", **labels, reason="abort") == 1
    assert _complete(server, "/v1/completions", prompt=PROMPT).headers["x-unlearn-release"] == new
    swap = wait_until(lambda: [r for r in _audit(_audit_log(folder)) if r.generation == generation], "it is noted")[-1]
    assert (swap.event, swap.mode, swap.previous_release) == ("swap", "abort", live["release"])


@contextmanager
def _store_away(folder: Path) -> Iterator[None]:
    (folder / "store").rename(folder / "away")
    try:
        yield
    finally:
        (folder / "away").rename(folder / "store")


@contextmanager
def _store_back(folder: Path) -> Iterator[None]:
    (folder / "away").rename(folder / "store")
    try:
        yield
    finally:
        (folder / "store").rename(folder / "away")


@contextmanager
def _refusal(server: Server, folder: Path, release: str, store: Store, reason: str) -> Iterator[None]:
    """Point the channel at `release` without the checks of a promote: the server refuses it and serves on."""
    before = server.status()["live"]
    entry = ChannelEntry(
        channel=CHANNEL,
        generation=store.channel(CHANNEL).generation + 1,
        release=release,
        action="promote",
        restores_generation=None,
        at=datetime.now(UTC),
        actor="careless",
        reason="",
    )
    assert Backend.open(str(folder / "store")).create(entry_path(CHANNEL, entry.generation), entry.to_bytes())

    refused = wait_until(lambda: server.status()["refused"], f"{reason} is noticed")

    assert refused.startswith(f"generation {entry.generation}: ")
    assert reason in refused
    yield
    assert server.status()["live"] == before
    assert _complete(server, "/v1/completions", prompt=PROMPT).headers["x-unlearn-release"] == before["release"]
    refusals = [record for record in _audit(_audit_log(folder)) if record.generation == entry.generation]
    assert [(record.event, record.ok, record.release) for record in refusals] == [("refusal", False, release)]
    assert refusals[0].error == refused


def _complete(server: Server, path: str, **body: Any) -> httpx.Response:
    with server.client() as client:
        return client.post(
            path, json={"model": MODEL_NAME, "max_tokens": 4, "temperature": 0, **body}
        ).raise_for_status()


def _other(releases: tuple[str, str], live: str) -> str:
    return releases[1] if live == releases[0] else releases[0]


def _pids(status: dict[str, Any]) -> list[int]:
    return [status["server_pid"], *(worker["pid"] for worker in status["workers"])]


def _audit(path: Path) -> list[SwapRecord]:
    return [SwapRecord.model_validate_json(line) for line in path.read_text().splitlines()]


def _audit_log(folder: Path) -> Path:
    (found,) = (folder / "state").glob("*/audit.jsonl")
    return found


def _run_cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CLI, *arguments],
        env=server_environment(COLUMNS="200", **environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=GENEROUS_SECONDS,
    )


def _cli(*arguments: str, **environment: str) -> str:
    result = _run_cli(*arguments, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout
