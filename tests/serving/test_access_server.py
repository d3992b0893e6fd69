"""Who may call what of a real server, and what its admin routes make of strangers' requests."""

import base64
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.access_matrix import CALLERS, MATRIX, Row, address
from support.adapters import write_random_adapter
from support.server import ADMIN_KEY, API_KEY, MODEL_NAME, Server, plain_vllm_command, running
from support.tiny_models import write_tiny_model

from unlearn_serve.demo.checkpoint import ensure_checkpoint
from unlearn_serve.store import Store

pytestmark = [pytest.mark.engine, pytest.mark.model]

CHANNEL = "production"
NEXT_KEY = "next-admin-key-of-the-tests"
ROUTE_LINE = re.compile(r"Route: (\S+), Methods: ([A-Z, ]+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return write_tiny_model(folder / "tiny", vocab_size=49152, tokenizer=ensure_checkpoint())


@pytest.fixture(scope="module")
def store(folder: Path, base: Path) -> Store:
    store = Store.open(str(folder / "store"), create=True)
    for seed in (1, 2):
        release = store.publish(write_random_adapter(base, folder / f"{seed}", seed=seed))
        store.promote(release, CHANNEL, actor="test")
    return store


@pytest.fixture(scope="module")
def server(folder: Path, base: Path, store: Store) -> Iterator[Server]:
    """Two admin keys, an API key, and limits that no test here reaches."""
    limits = {"admin_rate": "100000/second", "admin_failure_rate": "100000/second"}
    command = plain_vllm_command(
        base, {"store": store.url, "state_dir": str(folder / "state"), **limits}, "--api-key", API_KEY
    )
    keys = f"{ADMIN_KEY},{NEXT_KEY}"
    with running(command, log=folder / "server.log", headers=CALLERS["both"], UNLEARN_ADMIN_KEY=keys) as started:
        started.wait_ready()
        yield started


def test_the_matrix_has_every_route_of_the_server_and_no_other(server: Server) -> None:
    """vLLM logs the routes it serves. One that is not in the matrix is one that nobody thought about."""
    served = {
        (method, path)
        for path, methods in ROUTE_LINE.findall(re.sub(r"\x1b\[[0-9;]*m", "", server.output))
        for method in methods.split(", ")
        if method != "HEAD"
    }

    assert served == {(row.method, row.path) for row in MATRIX}


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: f"{row.method} {row.path}")
def test_each_caller_is_answered_as_the_matrix_says(server: Server, store: Store, row: Row) -> None:
    before = store.channel(CHANNEL)

    with httpx.Client(base_url=server.url, timeout=60) as client:
        answers = {
            caller: client.request(row.method, address(row), headers=headers, json=row.body)
            for caller, headers in CALLERS.items()
        }

    statuses = {caller: answer.status_code for caller, answer in answers.items()}
    assert statuses == dict(zip(CALLERS, row.statuses, strict=True))
    assert store.channel(CHANNEL) == before
    for answer in answers.values():
        assert ADMIN_KEY not in answer.text


def test_each_of_the_admin_keys_opens(server: Server) -> None:
    headers = {**CALLERS["client"], "X-Unlearn-Admin-Key": NEXT_KEY}

    assert httpx.get(f"{server.url}/v1/unlearning/status", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("POST", f"/{name}") for name in ("collective_rpc", "pause", "resume", "sleep", "wake_up")],
        *[
            ("POST", f"/{name}")
            for name in ("reset_prefix_cache", "reset_mm_cache", "update_weights", "abort_requests")
        ],
        *[("POST", f"/{name}") for name in ("start_profile", "stop_profile", "adapters", "fault_tolerance/apply")],
        ("GET", "/server_info"),
        ("DELETE", "/adapters/base"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
    ],
)
def test_vllms_routes_for_developers_are_not_there(server: Server, method: str, path: str) -> None:
    with server.client() as client:
        assert client.request(method, path, json={}).status_code == 404


def test_no_path_address_or_pickle_of_a_client_reaches_a_loader(server: Server, folder: Path) -> None:
    mark = folder / "unpickled"
    payload = base64.b64encode(pickle.dumps(_Touch(str(mark)))).decode()
    named = [
        str(folder / "1"),
        f"file://{folder / '1'}",
        "https://example.org/adapter",
        f"{MODEL_NAME}@../../1",
        "../1",
    ]
    headers = {**CALLERS["client"], "Content-Type": "application/json"}

    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        for name in named:
            answer = client.post("/v1/completions", json={"model": name, "prompt": "Hello", "max_tokens": 1})
            assert answer.status_code == 404, name
            by_header = {"X-Amzn-SageMaker-Adapter-Identifier": name}
            answer = client.post("/invocations", json={"prompt": "Hello", "max_tokens": 1}, headers=by_header)
            assert answer.status_code == 404, name
        embeds = client.post("/v1/completions", json={"model": MODEL_NAME, "prompt_embeds": payload, "max_tokens": 1})
        image = {"type": "image_url", "image_url": {"url": f"file://{folder / 'server.log'}"}}
        chat = {"model": MODEL_NAME, "messages": [{"role": "user", "content": [image]}], "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=chat).status_code == 400
        raw = client.post("/v1/unlearning/rollback", content=pickle.dumps(_Touch(str(mark))), headers=CALLERS["both"])

    assert embeds.status_code == 400
    assert "--enable-prompt-embeds" in embeds.text
    assert raw.status_code == 400
    assert not mark.exists()
    assert server.status()["live"]["generation"] == 2


OPERATIONS = [(row.method, row.path) for row in MATRIX if row.path.startswith("/v1/unlearning")]
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def schema(server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_the_openapi_has_all_admin_routes_and_says_that_they_need_the_admin_key(server: Server, schema: Any) -> None:
    paths = {path: item for path, item in schema.raw_schema["paths"].items() if path.startswith("/v1/unlearning")}

    assert {(method.upper(), path) for path, item in paths.items() for method in item} == set(OPERATIONS)
    assert all(operation["security"] for item in paths.values() for operation in item.values())


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *[(method, path, POSITIVE) for method, path in OPERATIONS],
        *[(method, path, NEGATIVE) for method, path in OPERATIONS if method != "GET"],  # those take nothing
    ],
)
def test_admin_routes_keep_to_their_openapi(
    server: Server, schema: Any, method: str, path: str, mode: GenerationMode
) -> None:
    """No status, header or body but those described; what is not valid refused; no answer without the admin key."""
    operation = schema[path][method]
    session = requests.Session()
    session.headers.update(CALLERS["client"])

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    def keeps_to_it(case: Any) -> None:
        case.call_and_validate(
            base_url=server.url,
            session=session,
            headers={"X-Unlearn-Admin-Key": ADMIN_KEY},
            excluded_checks=[positive_data_acceptance],  # well-formed and impossible: no such generation, no such route
            timeout=60,
        )

    keeps_to_it()
    assert server.status()["enforced"] is True


class _Touch:
    """Unpickled, makes a file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.mkdir, (self._path, 0o700)
