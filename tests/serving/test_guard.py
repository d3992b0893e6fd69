"""What is open, what the admin key opens, and how large a body may be: on vLLM's own app, with no engine behind it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from model_hosting_container_standards.common.handler import handler_registry
from support.engine import set_environment
from support.public_app import build_public_app
from support.server import ADMIN_KEY, API_KEY

from unlearn_serve.errors import NotEnforced
from unlearn_serve.serving.body_limit import ADMIN_BODY_BYTES
from unlearn_serve.serving.open_paths import INFERENCE, OPEN_PATHS, WATCHING

BEARER = {"Authorization": f"Bearer {API_KEY}"}
ADMIN = {"X-Unlearn-Admin-Key": ADMIN_KEY}
OPERATORS = {
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
    "/inference/v1/abort_requests",
    "/v1/unlearning/status",
    "/v1/unlearning/history",
    "/v1/unlearning/apply",
    "/v1/unlearning/rollback",
    "/v1/unlearning/routes",
    "/v1/unlearning/routes/{release}",
}
"""Paths of a server started as it comes that need the admin key."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)
    monkeypatch.setenv("UNLEARN_ADMIN_KEY", ADMIN_KEY)


def ask(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    async def one() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(one())


def paths(app: Any) -> set[str]:
    return {route.path for route in app.routes}


class TestWhatIsOpen:
    """serving/open_paths.py against the routes that vLLM has."""

    def test_every_route_of_a_server_as_it_comes_is_open_or_known_to_be_the_operators(self) -> None:
        """A release of vLLM that adds a route fails here: decide whose it is. A server has it shut until then."""
        assert paths(build_public_app()) - OPEN_PATHS == OPERATORS

    def test_no_path_is_listed_that_vllm_does_not_have(self) -> None:
        """Else a typo would leave a route shut, or a stale line open what comes under its name later."""
        flags = ("--enable-scale-out", "--enable-tokenizer-info-endpoint", "--enable-offline-docs")
        audio = build_public_app(*flags, tasks=("generate", "transcription", "realtime"))

        without_sdk = {"/cohere/v2/chat", "/cohere/v2/chat/render"}
        assert OPEN_PATHS - without_sdk <= paths(audio) | paths(build_public_app())

    def test_no_path_is_listed_twice(self) -> None:
        assert len(OPEN_PATHS) == len(WATCHING) + len(INFERENCE)

    @pytest.mark.parametrize(
        ("flag", "variable", "opened"),
        [
            ((), "VLLM_SERVER_DEV_MODE", ["/collective_rpc", "/pause", "/resume", "/sleep", "/update_weights"]),
            ((), "VLLM_SERVER_DEV_MODE", ["/reset_prefix_cache", "/wake_up", "/abort_requests", "/server_info"]),
            ((), "VLLM_ALLOW_RUNTIME_LORA_UPDATING", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"]),
            ((), "VLLM_ALLOW_RUNTIME_LORA_UPDATING", ["/adapters", "/adapters/{adapter_name}"]),
            (("--profiler-config", '{"profiler": "torch", "torch_profiler_dir": "/tmp"}'), "", ["/start_profile"]),
            (("--enable-fault-tolerance",), "", ["/fault_tolerance/apply"]),
            (("--tokens-only",), "", ["/abort_requests"]),
        ],
        ids=["dev-1", "dev-2", "lora", "lora of SageMaker", "profile", "fault tolerance", "tokens only"],
    )
    def test_what_a_flag_opens_for_developers_needs_the_admin_key(
        self, monkeypatch: pytest.MonkeyPatch, flag: tuple[str, ...], variable: str, opened: list[str]
    ) -> None:
        """The two variables end the start as well; these routes stay shut all the same."""
        for name in ("_handlers", "_framework_default_handlers", "_decorator_handlers"):  # of the process, not the app
            monkeypatch.setattr(handler_registry, name, dict(getattr(handler_registry, name)))
        if variable:
            monkeypatch.setenv(variable, "1")
        app = build_public_app(*flag)
        methods = {route.path: min(route.methods) for route in app.routes if getattr(route, "methods", None)}

        for path in opened:
            assert path in methods, f"{path}: is it still there?"
            assert ask(app, methods[path], path, headers=BEARER).status_code == 401, path
            wrong = {**BEARER, "X-Unlearn-Admin-Key": API_KEY}
            assert ask(app, methods[path], path, headers=wrong).status_code == 401, path


class TestGuard:
    def test_it_lets_the_admin_in_and_nobody_else(self) -> None:
        app = build_public_app()

        def status(headers: dict[str, str]) -> int:
            return ask(app, "POST", "/is_scaling_elastic_ep", headers=headers).status_code

        assert [status({}), status(BEARER), status({**BEARER, "X-Unlearn-Admin-Key": "wrong"})] == [401, 401, 401]
        assert status(ADMIN) == 200

    @pytest.mark.parametrize("path", ["/v1/unlearning/status/", "/v1/unlearning//status", "/V1/unlearning/status"])
    def test_no_spelling_of_a_path_goes_around_it(self, path: str) -> None:
        answer = ask(build_public_app(), "GET", path, headers=BEARER)

        assert answer.status_code in (307, 401, 404)

    @pytest.mark.parametrize("prefix", ["", "/behind/a/proxy"])
    def test_it_holds_behind_a_prefix(self, prefix: str) -> None:
        app = build_public_app("--root-path", "/behind/a/proxy")

        assert ask(app, "GET", f"{prefix}/v1/unlearning/status", headers=BEARER).status_code == 401
        assert ask(app, "POST", f"{prefix}/is_scaling_elastic_ep").status_code == 401
        assert ask(app, "GET", f"{prefix}/version").status_code == 200

    def test_what_leads_nowhere_is_not_found_whoever_asks(self) -> None:
        app = build_public_app()

        assert ask(app, "GET", "/chat/completions").status_code == 404
        assert ask(app, "GET", "/is_scaling_elastic_ep").status_code == 401, "what has a path but not this method"
        assert ask(app, "GET", "/is_scaling_elastic_ep", headers=ADMIN).status_code == 405

    def test_too_many_wrong_keys_are_answered_with_when_to_come_back(self) -> None:
        app = build_public_app(admin_failure_rate="2/hour")
        wrong = {"X-Unlearn-Admin-Key": "wrong"}

        answers = [ask(app, "POST", "/is_scaling_elastic_ep", headers=headers) for headers in (wrong, wrong, ADMIN)]

        assert [answer.status_code for answer in answers] == [401, 401, 429]
        assert 0 < int(answers[2].headers["retry-after"]) <= 3600
        error = answers[2].json()["error"]
        assert error == {**error, "type": "Too Many Requests", "code": 429, "param": None}
        assert ask(app, "GET", "/version", headers=ADMIN).status_code == 200, "inference is not concerned"

    def test_with_an_address_of_their_own_admin_calls_are_not_taken_on_the_public_port(self) -> None:
        app = build_public_app(admin_listen="127.0.0.1:1")
        both = {**BEARER, **ADMIN}

        assert not any(path.startswith("/v1/unlearning") for path in paths(app))
        assert ask(app, "GET", "/v1/unlearning/status", headers=both).status_code == 404
        refused = ask(app, "POST", "/is_scaling_elastic_ep", headers=both)
        assert (refused.status_code, "admin_listen" in refused.text) == (403, True)

    @pytest.mark.parametrize(
        ("value", "flags", "message"),
        [
            ("short", (), "expected keys of 16"),
            (API_KEY, (), "no API keys"),
            (ADMIN_KEY, ("--api-key", ADMIN_KEY), "no API keys"),
        ],
        ids=["short", "the API key", "an API key given as a flag"],
    )
    def test_keys_that_protect_nothing_end_the_start(
        self, monkeypatch: pytest.MonkeyPatch, value: str, flags: tuple[str, ...], message: str
    ) -> None:
        monkeypatch.setenv("UNLEARN_ADMIN_KEY", value)

        with pytest.raises(NotEnforced, match=message):
            build_public_app(*flags)


class TestBodyLimit:
    """In `chunks` no length is told beforehand: what counts is what comes."""

    @pytest.fixture(params=["length", "chunks"])
    def body(self, request: pytest.FixtureRequest) -> Callable[[int], Any]:
        def of(size: int) -> Any:
            async def chunks() -> AsyncIterator[bytes]:
                for _ in range(size // 1024):
                    yield b" " * 1024
                yield b" " * (size % 1024)

            return b" " * size if request.param == "length" else chunks()

        return of

    @pytest.mark.parametrize("path", ["/v1/unlearning/rollback", "/scale_elastic_ep"])
    def test_of_a_call_of_the_admins(self, body: Callable[[int], Any], path: str) -> None:
        app, headers = build_public_app(), {**BEARER, **ADMIN, "Content-Type": "application/json"}

        fits = ask(app, "POST", path, content=body(ADMIN_BODY_BYTES), headers=headers)
        too_large = ask(app, "POST", path, content=body(ADMIN_BODY_BYTES + 1), headers=headers)

        assert fits.status_code == 400, "read, and found to be no JSON"
        assert too_large.status_code == 413
        assert too_large.json()["error"]["message"] == f"expected a body of at most {ADMIN_BODY_BYTES} bytes, got more"

    @pytest.mark.parametrize("content", [b"\xff", b"{", b"[]", b'{"to": 1}'], ids=repr)
    def test_a_body_that_fits_and_is_not_valid_is_answered_in_vllms_form(self, content: bytes) -> None:
        """FastAPI's own form, for what is not UTF-8, has no `error`."""
        headers = {**BEARER, **ADMIN, "Content-Type": "application/json"}

        answer = ask(build_public_app(), "POST", "/v1/unlearning/rollback", content=content, headers=headers)

        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == 400

    def test_of_inference(self, body: Callable[[int], Any]) -> None:
        app, headers = build_public_app(max_body_bytes=2**16), {**BEARER, "Content-Type": "application/json"}

        assert ask(app, "POST", "/v1/completions", content=body(2**16), headers=headers).status_code == 400
        assert ask(app, "POST", "/v1/completions", content=body(2**16 + 1), headers=headers).status_code == 413

    def test_nobody_without_a_key_makes_the_server_read(self) -> None:
        """FastAPI reads a body before any dependency of its route has looked at a key."""
        read = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal read
            while read < 100:
                read += 1
                yield b" " * 2**20

        answer = ask(build_public_app(), "POST", "/v1/unlearning/rollback", content=endless(), headers=BEARER)

        assert answer.status_code == 401
        assert read <= 1
