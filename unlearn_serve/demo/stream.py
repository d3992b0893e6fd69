"""A steady stream of streamed chat requests, and a record of every token's arrival."""

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from openai import AsyncOpenAI

from unlearn_serve.demo.bank import MAX_TOKENS, load_bank
from unlearn_serve.demo.knowledge import Knowledge, Row

MODEL = "demo"
"""The name under which the demo's server serves its model."""

FRUGAL_BEAT, BUSY_BEAT = 8.0, 0.0
"""Seconds between two requests of one stream: while a trainer needs the cores too, and around a swap (no rest at all).

All streams keep one beat: vLLM's processes spin for a second after each step, so that requests spread out evenly would
keep a core from the trainer all the time.
"""

FRUGAL_SHARE = 0.25
"""A stream on a beat lets beats pass where answers are slow: it waits for them no more than so much of the time."""

APART = 0.2
"""Seconds between the streams on a beat, or they would all prefill and all decode in step."""

RELEASE_HEADER = "x-unlearn-release"


@dataclass(kw_only=True)
class StreamedRequest:
    """One request as a client saw it; times are Unix seconds."""

    stream: int
    kind: str
    """The set the question is from: forget1, forget1_paraphrase, ..., retain or general."""

    question: str
    gold: str
    started: float
    answer: str = ""
    token_times: list[float] = field(default_factory=list)
    """When each chunk with text arrived."""

    ended: float = 0.0
    finish_reason: str | None = None
    release: str | None = None
    """The response header that names the release live when the response began."""

    fingerprint: str | None = None
    """`system_fingerprint` of the last chunk: the release at the response's end."""

    error: str | None = None

    @property
    def failed(self) -> bool:
        """True where an exception, or an end without a proper reason, cut the answer short."""
        return self.error is not None or self.finish_reason not in ("stop", "length")


class Stream:
    """Several concurrent clients, each asking one question after the other from a thread of their own.

    Use as a context manager; `requests` may be read at any time and is complete after the end.
    """

    def __init__(self, *, url: str, knowledge: Knowledge, streams: int, seed: int = 0) -> None:
        self.requests: list[StreamedRequest] = []
        self.beat = FRUGAL_BEAT
        """Seconds between the moments at which every stream asks; may be set while running."""

        self._url = url
        self._questions = [
            (name, row) for name, rows in sorted(knowledge.sets().items()) if name != "retain_train" for row in rows
        ]
        self._streams = streams
        self._random = random.Random(seed)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="demo-stream")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    async def _run(self) -> None:
        async with AsyncOpenAI(base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            await asyncio.gather(*(self._ask_on(client, stream) for stream in range(self._streams)))

    async def _ask_on(self, client: AsyncOpenAI, stream: int) -> None:
        while not self._ending.is_set():
            await asyncio.sleep(APART * stream if self.beat else 0)
            kind, row = self._random.choice(self._questions)
            request = StreamedRequest(
                stream=stream, kind=kind, question=row.question, gold=row.gold, started=time.time()
            )
            self.requests.append(request)
            try:
                await _ask(client, request)
            except Exception as error:  # whatever it was, it is a failed request, and that is what is counted
                request.error = f"{type(error).__name__}: {error}"
            request.ended = time.time()
            await self._rest(request.started, request.ended)

    async def _rest(self, asked: float, answered: float) -> None:
        """Wait for a beat after the one on which the stream asked; not at all where there is no beat."""
        rested = asked + (answered - asked) / FRUGAL_SHARE
        while self.beat and time.time() < (rested // self.beat + 1) * self.beat and not self._ending.is_set():
            await asyncio.sleep(0.1)


async def _ask(client: AsyncOpenAI, request: StreamedRequest) -> None:
    """Send one request and record its response as it arrives. Mutates `request`."""
    messages: Any = load_bank().messages(request.question)
    async with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=messages, temperature=0.0, max_tokens=MAX_TOKENS, stream=True
    ) as response:
        request.release = response.headers.get(RELEASE_HEADER)
        async for chunk in await response.parse():
            request.fingerprint = chunk.system_fingerprint or request.fingerprint
            for choice in chunk.choices:
                if choice.delta.content:
                    request.answer += choice.delta.content
                    request.token_times.append(time.time())
                request.finish_reason = choice.finish_reason or request.finish_reason


def named(requests: Sequence[StreamedRequest], rows: Sequence[Row]) -> int:
    """Count the answers among `requests` to `rows` that contain the gold string."""
    questions = {row.question for row in rows}
    return sum(
        request.question in questions and request.gold.casefold() in request.answer.casefold() for request in requests
    )
