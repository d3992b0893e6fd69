"""What a response under a route says of itself, message by message."""

import asyncio
import json
from typing import Any

from unlearn_serve.serving.route_fingerprint import naming

RELEASE = "ab" * 32
OURS = f"unlearn-{RELEASE[:16]}-route"


def sent(messages: list[dict[str, Any]], *, served: Any = lambda: True) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        out.append(message)

    async def run() -> None:
        named = naming(send, RELEASE, served)
        for message in messages:
            await named(message)

    asyncio.run(run())
    return out


def start(**headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": pairs}


def test_a_whole_response_is_renamed_and_keeps_its_length_true() -> None:
    body = json.dumps({"system_fingerprint": "unlearn-0123-g7", "text": "x"}).encode()
    first, second = sent([start(content_length=str(len(body))), {"type": "http.response.body", "body": body}])

    assert json.loads(second["body"]) == {"system_fingerprint": OURS, "text": "x"}
    assert dict(first["headers"])[b"content-length"] == str(len(second["body"])).encode()


def test_a_stream_is_renamed_until_the_route_is_no_longer_served() -> None:
    """The bug: the chunks after a fallback to the default still name the route."""
    served = iter([True, False])
    chunk = b'data: {"system_fingerprint":"unlearn-0123-g7"}\n\n'
    chunks = [{"type": "http.response.body", "body": chunk, "more_body": True}] * 2
    _, one, two = sent([start(), *chunks], served=lambda: next(served))

    assert OURS.encode() in one["body"]
    assert two["body"] == chunk


def test_what_a_model_writes_stays_as_it_is() -> None:
    text = json.dumps({"text": '"system_fingerprint": "unlearn-0123-g7"'}).encode()
    _, message = sent([start(), {"type": "http.response.body", "body": text}])

    assert message["body"] == text


def test_nothing_is_held_back_of_an_empty_response() -> None:
    assert len(sent([start(), {"type": "http.response.body"}])) == 2
