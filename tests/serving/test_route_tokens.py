"""Whose tokens a step's are: vLLM's own output processor and statistics, fed with what an engine sends."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.metrics.stats import IterationStats, PrefillStats

from unlearn_serve.serving import ledger
from unlearn_serve.serving.route_middleware import ServeRoutes
from unlearn_serve.serving.route_names import RouteNames
from unlearn_serve.serving.route_tokens import RouteTokens
from unlearn_serve.serving.routes import HeldRoute
from unlearn_serve.serving.startup import ROUTES

A, B = "a" * 64, "b" * 64
PROMPT = 5


class Frontend:
    """The API server's half of vLLM; `served` says what is computed under which release."""

    def __init__(self) -> None:
        self.output_processor = OutputProcessor(None, log_stats=True)
        self.served: dict[str, str | None] = {f"base@{A}": A, f"base@{B}": B, "sql": None}
        self.tokens = RouteTokens(self, self.served.get)
        self._fresh: set[str] = set()

    def add(self, external_id: str, name: str | None = None, *, n: int = 1) -> list[str]:
        """Hand a request to the engine; returns vLLM's own ids of its choices."""
        lora = LoRARequest(lora_name=name, lora_int_id=1, lora_path="/none") if name else None
        request = EngineCoreRequest(
            request_id=f"{external_id}-random",
            prompt_token_ids=[1] * PROMPT,
            mm_features=None,
            sampling_params=SamplingParams(n=n, max_tokens=9, detokenize=False),
            pooling_params=None,
            arrival_time=0.0,
            lora_request=lora,
            cache_salt=None,
            data_parallel_rank=None,
            external_req_id=external_id,
        )
        if n == 1:
            self.output_processor.add_request(request, None)
            ids = [request.request_id]
        else:
            ids = self._add_choices(request, n)
        self._fresh |= set(ids)
        return ids

    def _add_choices(self, request: Any, n: int) -> list[str]:
        from copy import copy

        parent, ids = ParentRequest(request), []
        for index in range(n):
            child = copy(request)
            child.request_id, child.sampling_params = parent.get_child_info(index)
            self.output_processor.add_request(child, None, parent, index)
            ids.append(child.request_id)
        return ids

    def step(self, came: dict[str, int], finished: tuple[str, ...] = ()) -> dict[str | None, tuple[int, int, int]]:
        """One engine step: how many tokens each request got; returns (prompt, generated, finished) by release."""
        stats = self.process(came, finished)
        shares = self.tokens.split(stats)
        assert sum(share.prompt for share in shares.values()) == stats.num_prompt_tokens
        assert sum(share.generated for share in shares.values()) == stats.num_generation_tokens
        assert sum(len(share.finished) for share in shares.values()) == len(stats.finished_requests)
        found = {key: (one.prompt, one.generated, len(one.finished)) for key, one in shares.items()}
        return {key: counts for key, counts in found.items() if any(counts)}

    def process(self, came: dict[str, int], finished: tuple[str, ...] = ()) -> IterationStats:
        outputs = []
        for request_id, count in came.items():
            prefill = PrefillStats()
            prefill.set(PROMPT, 0, 0)
            outputs.append(
                EngineCoreOutput(
                    request_id=request_id,
                    new_token_ids=[7] * count,
                    finish_reason=FinishReason.LENGTH if request_id in finished else None,
                    prefill_stats=prefill if request_id in self._fresh else None,
                )
            )
        self._fresh -= set(came)
        stats = IterationStats()
        self.output_processor.process_outputs(outputs, 1.0, stats)
        return stats


@pytest.fixture
def frontend() -> Frontend:
    return Frontend()


def test_a_mixed_step_is_split_by_release(frontend: Frontend) -> None:
    (plain,), (a,), (b,), (sql,) = (
        frontend.add(name, adapter)
        for name, adapter in (("p", None), ("x", f"base@{A}"), ("y", f"base@{B}"), ("z", "sql"))
    )

    assert frontend.step({plain: 1, a: 1}) == {None: (PROMPT, 1, 0), A: (PROMPT, 1, 0)}
    assert frontend.step({plain: 1, a: 2, b: 1, sql: 1}) == {
        None: (PROMPT, 2, 0),
        A: (0, 2, 0),
        B: (PROMPT, 1, 0),
    }, "an ordinary adapter is served under the default; speculation gives several tokens a step"
    assert frontend.step({plain: 1, a: 1, b: 1}, finished=(a, plain)) == {None: (0, 1, 1), A: (0, 1, 1), B: (0, 1, 0)}
    assert frontend.step({b: 1, sql: 3}, finished=(b, sql)) == {None: (0, 3, 1), B: (0, 1, 1)}
    assert frontend.step({}) == {}


@pytest.mark.parametrize(
    ("asked", "external_id"),
    [
        ("0f3d", "cmpl-0f3d-0"),
        ("0f3d", "chatcmpl-0f3d"),
        ("0f3d", "chatcmpl-0f3d_1"),
        ("0f3d", "generate-tokens-0f3d"),
        ("0f3d", "cmpl-0f3d-0-9a9a-beam-3"),
        ("resp_0f3d", "resp_0f3d_0"),
        ("order-17 of_anna", "chatcmpl-order-17 of_anna"),
    ],
)
def test_a_request_that_came_and_finished_between_two_steps_is_known_by_its_id(
    frontend: Frontend, asked: str, external_id: str
) -> None:
    """max_tokens 1: when the step is counted, vLLM has forgotten the request and its adapter."""
    with frontend.tokens.asked(asked, f"base@{A}"):
        (one,), (plain,) = frontend.add(external_id, f"base@{A}"), frontend.add("cmpl-ffff-0")
        assert frontend.step({one: 1, plain: 1}, finished=(one, plain)) == {None: (PROMPT, 1, 1), A: (PROMPT, 1, 1)}


def test_so_is_one_that_was_answered_before_its_step_is_counted(frontend: Frontend) -> None:
    """vLLM waits between the two where a stop string ended a request."""
    (one,) = frontend.add("cmpl-0f3d-0", f"base@{A}")
    with frontend.tokens.asked("0f3d", f"base@{A}"):
        stats = frontend.process({one: 1}, finished=(one,))

    assert frontend.tokens.split(stats)[A].generated == 1
    assert frontend.tokens._asked == {}, "and then it is forgotten"


def test_choices_that_finish_in_different_ways(frontend: Frontend) -> None:
    with frontend.tokens.asked("0f3d", f"base@{A}"):
        one, two, three = frontend.add("cmpl-0f3d-0", f"base@{A}", n=3)
        assert frontend.step({one: 1, two: 1}, finished=(one,)) == {A: (2 * PROMPT, 2, 1)}
        assert frontend.step({two: 1, three: 2}, finished=(two, three)) == {A: (PROMPT, 3, 2)}


def test_from_a_flip_on_a_route_that_falls_back_counts_for_the_default(frontend: Frontend) -> None:
    with frontend.tokens.asked("0f3d", f"base@{A}"):
        (one,) = frontend.add("cmpl-0f3d-0", f"base@{A}")
        assert frontend.step({one: 1}) == {A: (PROMPT, 1, 0)}
        frontend.served[f"base@{A}"] = None
        assert frontend.step({one: 1}) == {None: (0, 1, 0)}
        frontend.served[f"base@{A}"] = A
        assert frontend.step({one: 1}, finished=(one,)) == {A: (0, 1, 1)}, "and what the default had is not added again"


def test_what_a_client_gave_up_is_neither_finished_nor_kept(frontend: Frontend) -> None:
    (one,), (other,) = frontend.add("cmpl-0f3d-0", f"base@{A}"), frontend.add("cmpl-1111-0")
    frontend.step({one: 1, other: 1})
    frontend.output_processor.abort_requests([one], internal=True)

    assert frontend.step({other: 1}) == {None: (0, 1, 0)}
    assert (frontend.tokens._known, frontend.tokens._counted) == ({}, {})


def test_one_that_ends_without_a_token_counts_as_finished_only(frontend: Frontend) -> None:
    (one,) = frontend.add("cmpl-0f3d-0", f"base@{A}")
    output = EngineCoreOutput(request_id=one, new_token_ids=[], finish_reason=FinishReason.ABORT)
    with frontend.tokens.asked("0f3d", f"base@{A}"):
        stats = IterationStats()
        frontend.output_processor.process_outputs([output], 1.0, stats)
        share = frontend.tokens.split(stats)[A]

    assert (share.prompt, share.generated, share.finished) == (0, 0, ["abort"])


def test_the_ledger_counts_routes_under_their_release(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger.TokenLedger, "routes", frontend.tokens)
    (one,), (plain,) = frontend.add("x", f"base@{A}"), frontend.add("p")
    labels = {"release": A, "generation": "route"}

    counting = ledger.TokenLedger(None)  # type: ignore[arg-type]
    counting.record(None, frontend.process({one: 1, plain: 1}))
    counting.record(None, frontend.process({one: 1, plain: 1}, finished=(one,)))

    assert REGISTRY.get_sample_value("unlearn_tokens_total", {**labels, "kind": "prompt"}) == PROMPT
    assert REGISTRY.get_sample_value("unlearn_tokens_total", {**labels, "kind": "generated"}) == 2
    assert REGISTRY.get_sample_value("unlearn_finished_requests_total", {**labels, "reason": "length"}) == 1


class TestRequestIds:
    """The middleware knows the id that vLLM will use."""

    @pytest.fixture
    def routes(self, frontend: Frontend) -> Any:
        async def acquire(label: str) -> HeldRoute:
            return HeldRoute(release=A, name=f"base@{A}", lora_id=1, deletion_ids=frozenset())

        return SimpleNamespace(
            names=RouteNames(["base"], {}),
            acquire=acquire,
            release=lambda route: None,
            missing_ids=lambda ids: [],
            tokens=frontend.tokens,
        )

    def ask(self, routes: Any, path: str, *, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
        """What reached vLLM, and which ids were known meanwhile."""

        async def reached(request: Request) -> JSONResponse:
            got = {"header": request.headers.get("x-request-id"), "body": await request.json()}
            return JSONResponse({**got, "asked": dict(routes.tokens._asked)})

        app = Starlette(routes=[Route("/{path:path}", reached, methods=["POST"])])
        app.add_middleware(ServeRoutes)
        setattr(app.state, ROUTES, routes)

        async def post() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                return await client.post(path, json={"model": f"base@{A}", **body}, headers=headers)

        return json.loads(asyncio.run(post()).content)

    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/messages"])
    def test_one_is_made_where_the_client_gives_none(self, routes: Any, path: str) -> None:
        got = self.ask(routes, path)
        assert got["asked"] == {got["header"]: f"base@{A}"}
        assert len(got["header"]) == 32
        assert "request_id" not in got["body"]

    def test_the_clients_is_kept(self, routes: Any) -> None:
        by_header = self.ask(routes, "/v1/completions", headers={"X-Request-Id": "mine"}, request_id="other")
        by_body = self.ask(routes, "/v1/completions", request_id="mine")
        assert (by_header["header"], list(by_header["asked"])[-1]) == ("mine", "mine"), "vLLM prefers the header"
        assert (by_body["header"], list(by_body["asked"])[-1]) == ("mine", "mine")

    def test_responses_take_it_from_the_body(self, routes: Any) -> None:
        made = self.ask(routes, "/v1/responses", headers={"X-Request-Id": "ignored"})
        given = self.ask(routes, "/v1/responses", request_id="resp_mine")
        assert list(made["asked"]) == [made["body"]["request_id"]]
        assert made["body"]["request_id"].startswith("resp_")
        assert list(given["asked"])[-1] == given["body"]["request_id"] == "resp_mine"
