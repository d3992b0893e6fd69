"""Who may call what of a server: every route that it has, with what each kind of caller is answered.

Columns, in this order:

    nobody      no key at all
    client      the API key
    admin       the admin key, and not the API key that this server has too
    both        the admin key and the API key
    guesser     the API key and a wrong admin key
    stranger    a wrong API key and the admin key

401 and 403 are answers to who asks; every other status comes from the route itself, so the caller was let in.
"""

from typing import NamedTuple

from support.server import ADMIN_KEY, API_KEY, MODEL_NAME

WRONG = "wrong-key-of-the-tests"

CALLERS: dict[str, dict[str, str]] = {
    "nobody": {},
    "client": {"Authorization": f"Bearer {API_KEY}"},
    "admin": {"X-Unlearn-Admin-Key": ADMIN_KEY},
    "both": {"Authorization": f"Bearer {API_KEY}", "X-Unlearn-Admin-Key": ADMIN_KEY},
    "guesser": {"Authorization": f"Bearer {API_KEY}", "X-Unlearn-Admin-Key": WRONG},
    "stranger": {"Authorization": f"Bearer {WRONG}", "X-Unlearn-Admin-Key": ADMIN_KEY},
}


class Row(NamedTuple):
    """A route, and the status for each caller."""

    method: str
    path: str
    statuses: tuple[int, int, int, int, int, int]
    body: object = None


def watching(method: str, path: str) -> Row:
    """Open to all, in vLLM as in ours."""
    return Row(method, path, (200,) * 6)


def inference(method: str, path: str, status: int, body: object = None) -> Row:
    """Needs the API key; the admin key neither opens nor shuts it."""
    return Row(method, path, (401, status, 401, status, status, 401), body)


def unguarded(method: str, path: str, status: int, body: object = None) -> Row:
    """Inference that vLLM's --api-key does not guard (security.md)."""
    return Row(method, path, (status,) * 6, body)


def ours(method: str, path: str, status: int, body: object = None) -> Row:
    """An admin route: the API key first, and then the admin key."""
    return Row(method, path, (401, 401, 401, status, 401, 401), body)


def operators(method: str, path: str, status: int, body: object = None) -> Row:
    """A route of vLLM's that its --api-key does not guard, and the admin key does."""
    return Row(method, path, (401, 401, status, status, 401, status), body)


_ASKED = {"model": MODEL_NAME, "max_tokens": 1}
_CHAT = {**_ASKED, "messages": [{"role": "user", "content": "Hello"}]}
_DIGEST = "0" * 64
_NOT_VALID: dict[str, object] = {}

MATRIX = (
    watching("GET", "/health"),
    watching("GET", "/ping"),
    watching("POST", "/ping"),
    watching("GET", "/load"),
    watching("GET", "/version"),
    watching("GET", "/metrics"),
    watching("GET", "/kv_event_sources"),
    watching("GET", "/openapi.json"),
    watching("GET", "/docs"),
    watching("GET", "/docs/oauth2-redirect"),
    watching("GET", "/redoc"),
    inference("GET", "/v1/models", 200),
    inference("POST", "/v1/completions", 200, {**_ASKED, "prompt": "Hello"}),
    inference("POST", "/v1/chat/completions", 200, _CHAT),
    inference("POST", "/v1/chat/completions/batch", 400, _NOT_VALID),
    inference("POST", "/v1/responses", 400, _NOT_VALID),
    inference("GET", "/v1/responses/{response_id}", 404),
    inference("POST", "/v1/responses/{response_id}/cancel", 404),
    inference("POST", "/v1/messages", 200, _CHAT),
    inference("POST", "/v1/messages/count_tokens", 200, _CHAT),
    inference("POST", "/v1/systemone", 400, _NOT_VALID),
    # Off in vLLM without --enable-scale-out: 403 to whoever is let in.
    inference("POST", "/v1/completions/render", 403, _NOT_VALID),
    inference("POST", "/v1/completions/derender", 403, _NOT_VALID),
    inference("POST", "/v1/chat/completions/render", 403, _NOT_VALID),
    inference("POST", "/v1/chat/completions/derender", 403, _NOT_VALID),
    inference("POST", "/v1/responses/render", 403, _NOT_VALID),
    inference("POST", "/v1/messages/render", 403, _NOT_VALID),
    inference("POST", "/inference/v1/generate", 403, _NOT_VALID),
    ours("POST", "/inference/v1/abort_requests", 403, {"request_ids": ["no such request"]}),
    unguarded("POST", "/tokenize", 200, {"model": MODEL_NAME, "prompt": "Hello"}),
    unguarded("POST", "/detokenize", 200, {"model": MODEL_NAME, "tokens": [1]}),
    unguarded("POST", "/invocations", 200, {**_ASKED, "prompt": "Hello"}),
    unguarded("POST", "/generative_scoring", 400, _NOT_VALID),
    operators("POST", "/scale_elastic_ep", 400, _NOT_VALID),
    operators("POST", "/is_scaling_elastic_ep", 200),
    ours("GET", "/v1/unlearning/status", 200),
    ours("GET", "/v1/unlearning/history", 200),
    ours("POST", "/v1/unlearning/apply", 200),
    # Let in, this is refused for what it asks: the channel stays where it is.
    ours("POST", "/v1/unlearning/rollback", 400, {"to_generation": 10**6}),
    # 404: this server was started without --routes.
    ours("GET", "/v1/unlearning/routes", 404),
    ours("DELETE", "/v1/unlearning/routes/{release}", 404),
)


def address(row: Row) -> str:
    """The row's path with its parameters filled in."""
    return row.path.format(response_id="resp_none", release=_DIGEST)
