"""Running requests under a change: clients that stream one completion after the other and note every token."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import httpx

RETRY_SECONDS = 1.0
"""How long a client waits after a request that failed."""

ANSWER_SECONDS = 120.0
"""An answer that is silent for so long has failed."""


@dataclass(kw_only=True)
class StreamedRequest:
    """One request as its client saw it; times are Unix seconds."""

    stream: int
    model: str
    prompt: Sequence[int]
    started: float
    token_ids: list[int] = field(default_factory=list)
    tokens: list[tuple[float, int]] = field(default_factory=list)
    """When each chunk came, and how many tokens had come by then."""
    release: str | None = None
    """The header that names the release live when the response began."""
    generation: int | None = None
    """The same of the channel's generation."""
    fingerprint: str | None = None
    """`system_fingerprint` of the last chunk: what the answer ended under."""
    ended: float | None = None
    error: str | None = None

    def note_headers(self, headers: Mapping[str, str]) -> None:
        """Take down what the response says of itself when it begins."""
        self.release = headers.get("x-unlearn-release")
        self.generation = int(headers["x-unlearn-generation"]) if "x-unlearn-generation" in headers else None

    def note_chunk(self, token_ids: Sequence[int], fingerprint: str | None) -> None:
        """Take down a chunk that has just come."""
        self.fingerprint = fingerprint or self.fingerprint
        if token_ids:
            self.token_ids += token_ids
            self.tokens.append((time.time(), len(self.token_ids)))

    def tokens_by(self, moment: float) -> int:
        """Return how many tokens had come by `moment`."""
        return max((count for at, count in self.tokens if at <= moment), default=0)

    def running_at(self, moment: float) -> bool:
        """True where the request had its first token by `moment` and was not at its end."""
        return bool(self.tokens) and self.tokens[0][0] <= moment and (self.ended is None or self.ended > moment)


Ask = Callable[[StreamedRequest, int], Awaitable[None]]
"""Sends a request for so many tokens and notes its answer as it comes; raises where the request fails."""

Connect = Callable[[str], AbstractAsyncContextManager[Ask]]
"""Opens a client of the server at a URL."""


class Streams:
    """`count` clients in a thread of their own. Use as a context manager; `requests` is complete after the end."""

    def __init__(
        self,
        url: str,
        model: str,
        prompts: Sequence[list[int]],
        *,
        count: int,
        output_tokens: int,
        connect: Connect | None = None,
    ) -> None:
        self.requests: list[StreamedRequest] = []
        self.model = model
        """Whom the next requests ask for; may be set while running."""

        self._url = url
        self._prompts = list(prompts)
        self._count = count
        self._output_tokens = output_tokens
        self._connect = connect or http_client
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="streams")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    async def _run(self) -> None:
        async with self._connect(self._url) as ask:
            await asyncio.gather(*(self._ask_on(ask, stream) for stream in range(self._count)))

    async def _ask_on(self, ask: Ask, stream: int) -> None:
        await asyncio.sleep(0.2 * stream)  # apart, or all would prefill and all would decode in step
        asked = 0
        while not self._ending.is_set():
            prompt = self._prompts[(stream + asked * self._count) % len(self._prompts)]
            asked += 1
            request = StreamedRequest(stream=stream, model=self.model, prompt=prompt, started=time.time())
            self.requests.append(request)
            try:
                await ask(request, self._output_tokens)
                if (got := len(request.token_ids)) != self._output_tokens:
                    raise RuntimeError(f"expected {self._output_tokens} tokens, got {got}")
            except Exception as problem:  # whatever it was, the request failed, and that is what is counted
                request.error = f"{type(problem).__name__}: {problem}"
            request.ended = time.time()
            if request.error:
                await asyncio.sleep(RETRY_SECONDS)


def body_of(request: StreamedRequest, tokens: int) -> dict[str, Any]:
    """Return the body of a request for a greedy answer of exactly `tokens` tokens."""
    return {
        "model": request.model,
        "prompt": request.prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "return_token_ids": True,
    }


@asynccontextmanager
async def http_client(url: str) -> AsyncIterator[Ask]:
    """A client that does as little as it can, for measurements."""
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS) as client:
        yield partial(_ask, client)


async def _ask(client: httpx.AsyncClient, request: StreamedRequest, tokens: int) -> None:
    async with client.stream("POST", "/v1/completions", json=body_of(request, tokens)) as response:
        if response.status_code != 200:
            await response.aread()
            raise RuntimeError(f"status {response.status_code}: {response.text[:200]}")
        request.note_headers(response.headers)
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"]))
            for choice in chunk["choices"]:
                request.note_chunk(choice["token_ids"] or [], chunk.get("system_fingerprint"))


def longest_gap(requests: Sequence[StreamedRequest], begin: float, end: float) -> float:
    """Return the longest time, in seconds, that a client waited between two tokens and that touches [begin, end].

    Per client, over all its requests: a request that was cut short, and the next one's first token, make a gap too.
    A client's wait for an answer's first token in undisturbed times counts as well, as it would for its user.
    """
    longest = 0.0
    for stream in {request.stream for request in requests}:
        times = [at for request in requests if request.stream == stream for at, _ in request.tokens]
        gaps = [later - earlier for earlier, later in pairwise(times) if later > begin and earlier < end]
        longest = max([longest, *gaps])
    return longest
