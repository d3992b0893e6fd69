"""Running requests for the swap benchmark: clients that stream one completion after the other and note every token."""

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import httpx

RETRY_SECONDS = 1.0
"""How long a client waits after a request that failed."""


@dataclass(kw_only=True)
class StreamedRequest:
    """One request as its client saw it; times are Unix seconds."""

    stream: int
    model: str
    prompt_tokens: int
    started: float
    tokens: list[tuple[float, int]] = field(default_factory=list)
    """When each chunk came, and how many tokens had come by then."""
    fingerprint: str | None = None
    """`system_fingerprint` of the last chunk: what the answer ended under."""
    ended: float | None = None
    error: str | None = None

    def tokens_by(self, moment: float) -> int:
        """Return how many tokens had come by `moment`."""
        return max((count for at, count in self.tokens if at <= moment), default=0)

    def running_at(self, moment: float) -> bool:
        """True where the request had its first token by `moment` and was not at its end."""
        return bool(self.tokens) and self.tokens[0][0] <= moment and (self.ended is None or self.ended > moment)


class Streams:
    """`count` clients in a thread of their own. Use as a context manager; `requests` is complete after the end."""

    def __init__(self, url: str, model: str, prompts: Sequence[list[int]], *, count: int, output_tokens: int) -> None:
        self.requests: list[StreamedRequest] = []
        self.model = model
        """Whom the next requests ask for; may be set while running."""

        self._url = url
        self._prompts = list(prompts)
        self._count = count
        self._output_tokens = output_tokens
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
        async with httpx.AsyncClient(base_url=self._url, timeout=120) as client:
            await asyncio.gather(*(self._ask_on(client, stream) for stream in range(self._count)))

    async def _ask_on(self, client: httpx.AsyncClient, stream: int) -> None:
        await asyncio.sleep(0.2 * stream)  # apart, or all would prefill and all would decode in step
        asked = 0
        while not self._ending.is_set():
            prompt = self._prompts[(stream + asked * self._count) % len(self._prompts)]
            asked += 1
            request = StreamedRequest(stream=stream, model=self.model, prompt_tokens=len(prompt), started=time.time())
            self.requests.append(request)
            try:
                await self._ask(client, prompt, request)
            except Exception as problem:  # whatever it was, the request failed, and that is what is counted
                request.error = f"{type(problem).__name__}: {problem}"
            request.ended = time.time()
            if request.error:
                await asyncio.sleep(RETRY_SECONDS)

    async def _ask(self, client: httpx.AsyncClient, prompt: list[int], request: StreamedRequest) -> None:
        body: dict[str, Any] = {
            "model": request.model,
            "prompt": prompt,
            "max_tokens": self._output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise RuntimeError(f"status {response.status_code}: {response.text[:200]}")
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise RuntimeError(str(chunk["error"]))
                request.fingerprint = chunk.get("system_fingerprint") or request.fingerprint
                if chunk["choices"]:
                    request.tokens.append((time.time(), chunk["usage"]["completion_tokens"]))
        got = request.tokens_by(time.time())
        if got != self._output_tokens:
            raise RuntimeError(f"expected {self._output_tokens} tokens, got {got}")


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
