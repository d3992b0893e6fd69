"""The admin routes at an address of their own: real listeners, over a follower whose engine fails on demand."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.datastructures import State
from support.certificates import write_certificate
from support.engine import set_environment
from support.public_app import parse_serve
from support.server import ADMIN_KEY, API_KEY, free_port

from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving.admin_listener import start_listener
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.live import Live

KEYS = {"X-Unlearn-Admin-Key": ADMIN_KEY}
HISTORY = "/v1/unlearning/history"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)
    monkeypatch.setenv("UNLEARN_ADMIN_KEY", ADMIN_KEY)


def listening(address: str, ask: Callable[[], Awaitable[Any]], *flags: str) -> Any:
    """Start a listener beside a public app of `flags`, return what `ask` does, and end it."""

    async def run() -> Any:
        config = ServingConfig(store="/no/such/store", admin_listen=address)
        state = State()
        state.args = parse_serve(*flags)
        state.unlearning = SimpleNamespace(live=Live(channel="production"), audit=SimpleNamespace(path="/audit.jsonl"))
        state.unlearning_routes = None
        task = start_listener(config, state, state.args)
        assert task is not None
        try:
            return await ask()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return asyncio.run(run())


async def answers(client: httpx.AsyncClient) -> dict[str, int]:
    async with client:
        asked = {
            "no key": client.get(HISTORY),
            "inference key": client.get(HISTORY, headers={"Authorization": f"Bearer {API_KEY}"}),
            "wrong key": client.get(HISTORY, headers={"X-Unlearn-Admin-Key": API_KEY}),
            "admin key": client.get(HISTORY, headers=KEYS),
            "no route": client.get("/v1/models", headers=KEYS),
            "not valid": client.post("/v1/unlearning/rollback", json={"to": 1}, headers=KEYS),
            "too large": client.post("/v1/unlearning/rollback", content=b" " * 20_000, headers=KEYS),
        }
        return {name: (await answer).status_code for name, answer in asked.items()}


EXPECTED = {
    "no key": 401,
    "inference key": 401,
    "wrong key": 401,
    "admin key": 200,
    "no route": 404,
    "not valid": 400,
    "too large": 413,
}


def test_at_a_port() -> None:
    port = free_port()
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}")

    assert listening(f"127.0.0.1:{port}", lambda: answers(client)) == EXPECTED


def test_at_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    client = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://admin")

    assert listening(f"unix:{path}", lambda: answers(client)) == EXPECTED


def test_wrong_keys_at_a_unix_socket_are_counted_too(tmp_path: Path) -> None:
    """They have no address."""
    path = tmp_path / "admin.sock"

    async def guess() -> list[int]:
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            wrong = {"X-Unlearn-Admin-Key": "wrong"}
            return [(await client.get(HISTORY, headers=wrong)).status_code for _ in range(11)]

    assert listening(f"unix:{path}", guess) == [401] * 10 + [429]


def test_a_port_speaks_tls_where_the_public_one_does(tmp_path: Path) -> None:
    """An admin key in clear beside an API key that is not would be the weaker door."""
    key, certificate = write_certificate(tmp_path)
    port, trust = free_port(), ssl.create_default_context(cafile=str(certificate))
    client = httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trust)
    flags = ("--ssl-keyfile", str(key), "--ssl-certfile", str(certificate))

    assert listening(f"127.0.0.1:{port}", lambda: answers(client), *flags) == EXPECTED


async def _never() -> None:
    raise AssertionError("it started")


@pytest.mark.parametrize(
    ("address", "flags", "message"),
    [
        ("127.0.0.1:8123", ("--port", "8123"), "expected another port than the public one"),
        ("192.0.2.1:8001", (), "expected an address to listen on, got 192.0.2.1:8001"),
        ("unix:/no/such/folder/admin.sock", (), "No such file or directory"),
        ("127.0.0.1:8001", ("--ssl-keyfile", "/no", "--ssl-certfile", "/no"), "expected the TLS files"),
    ],
)
def test_where_it_cannot_listen_the_start_ends_with_one_line(
    address: str, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(NotEnforced, match=message) as caught:
        listening(address, _never, *flags)

    assert "\n" not in str(caught.value)


def test_without_a_key_the_start_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNLEARN_ADMIN_KEY")

    with pytest.raises(NotEnforced, match=r"admin_listen 127.0.0.1:8001: expected admin keys in UNLEARN_ADMIN_KEY or"):
        listening("127.0.0.1:8001", _never)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("admin_listen", "localhost:1"),
        ("admin_rate", "often"),
        ("admin_rate", "1/day;2/day"),
        ("admin_failure_rate", "0/minute"),
        ("max_body_bytes", 1),
        ("max_body_bytes", "64 MiB"),
    ],
)
def test_a_setting_that_limits_nothing_ends_the_start(setting: str, value: object) -> None:
    with pytest.raises(NotEnforced, match=f"unlearn.{setting}: "):
        ServingConfig.from_additional_config({"unlearn": {"store": "/store", setting: value}})
