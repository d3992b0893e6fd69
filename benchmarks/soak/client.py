"""The client of the soak: the `openai` package as applications use it, but with no retry that would hide a failure."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from openai import AsyncOpenAI

from benchmarks.streams import ANSWER_SECONDS, Ask, StreamedRequest, body_of


@asynccontextmanager
async def openai_client(url: str) -> AsyncIterator[Ask]:
    """A client of the completions route of the server at `url`."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=ANSWER_SECONDS) as client:
        yield partial(_ask, client)


async def _ask(client: AsyncOpenAI, request: StreamedRequest, tokens: int) -> None:
    body: dict[str, Any] = body_of(request, tokens)
    # What OpenAI's API does not know goes beside what it does.
    more = {name: body.pop(name) for name in ("ignore_eos", "return_token_ids")}
    async with client.completions.with_streaming_response.create(**body, extra_body=more) as response:
        request.note_headers(response.headers)
        async for chunk in await response.parse():
            for choice in chunk.choices:
                token_ids = (choice.model_extra or {}).get("token_ids") or []
                request.note_chunk(token_ids, chunk.system_fingerprint)
