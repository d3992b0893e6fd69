"""Whose the tokens of an engine step are, where requests name releases.

vLLM tells a stat logger the sums of a step, and the totals of each request that finished in it, but no adapter. It does
know the adapter of every request that has not finished; so a route's share is how far its requests have come since the
step before. What is left are requests that came and finished between two steps: they are told by the id that
`ServeRoutes` sees to.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from unlearn_serve.serving.vllm_lora import AdapterRequest, requests_under_adapters

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import FinishedRequestStats, IterationStats

_WORDS_BEFORE_ID = 2
"""vLLM puts the kind of request before its id: `chatcmpl-`, `cmpl-`, `generate-tokens-`."""


@dataclass(kw_only=True)
class Share:
    """What one step did for one release."""

    prompt: int = 0
    """Tokens of the prompts whose first token came in this step; cached ones too, as vLLM counts them."""
    generated: int = 0
    finished: list[str] = field(default_factory=list)
    """The reason of each request that finished."""

    def move_on(self, prompt: int, generated: int, *, counted: int = 0) -> None:
        """Add what a request has come on: to `generated` tokens, of which `counted` were added before."""
        if generated > counted:
            self.prompt += 0 if counted else prompt
            self.generated += generated - counted


class RouteTokens:
    """Splits the counts of each step by release. Lives on the event loop of the API server."""

    def __init__(self, engine: Any, served: Callable[[str], str | None]) -> None:
        """Follow the requests of `engine`.

        Args:
            engine: vLLM's engine client.
            served: the release under which requests with an adapter's name are computed now; None is the default's.
        """
        self._engine = engine
        self._served = served
        self._known: dict[str, AdapterRequest] = {}
        """Requests under adapters that had not finished after the step before."""
        self._counted: dict[str, int] = {}
        """How many of the tokens that each of them generated were counted."""
        self._asked: dict[str, str] = {}
        """Id and adapter's name of HTTP requests under way, and of those that were answered since the step before."""
        self._answered: list[str] = []

    @contextmanager
    def asked(self, request_id: str, name: str) -> Iterator[None]:
        """Know an HTTP request under adapter `name` by its id, until it has been answered.

        Should a client give one id to several at once, under several releases, the last one stands for all.
        """
        self._asked[request_id] = name
        try:
            yield
        finally:
            self._answered.append(request_id)  # its last step may not have been counted yet

    def split(self, step: "IterationStats") -> dict[str | None, Share]:
        """Return what a step did for each release that requests named, and under None what is left: the default's."""
        answered, self._answered = self._answered, []
        served = cache(self._served)
        shares: defaultdict[str | None, Share] = defaultdict(Share)
        gone = self._follow(shares, served)
        for finished in step.finished_requests:
            name = _take(gone, finished)
            if name is None and (name := self._name_of(finished.request_id or "")) is not None:
                shares[served(name)].move_on(finished.num_prompt_tokens, finished.num_generation_tokens)
            shares[served(name) if name is not None else None].finished.append(str(finished.finish_reason))
        for request_id in answered:
            self._asked.pop(request_id, None)
        routed = [share for release, share in shares.items() if release is not None]
        shares[None].prompt = max(0, step.num_prompt_tokens - sum(share.prompt for share in routed))
        shares[None].generated = max(0, step.num_generation_tokens - sum(share.generated for share in routed))
        return shares

    def _follow(
        self, shares: defaultdict[str | None, Share], served: Callable[[str], str | None]
    ) -> list[AdapterRequest]:
        """Count how far requests under adapters have come; return those that are gone: finished, or given up."""
        running = requests_under_adapters(self._engine)
        gone = []
        for internal_id, request in {**self._known, **running}.items():
            generated, counted = request.generated_tokens, self._counted.pop(internal_id, 0)
            shares[served(request.name)].move_on(request.prompt_tokens, generated, counted=counted)
            if internal_id in running:
                self._counted[internal_id] = generated
            else:
                gone.append(request)
        self._known = running
        return gone

    def _name_of(self, external_id: str) -> str | None:
        """The adapter's name that the HTTP request behind one of vLLM's ids asked for; None where it named no route.

        An id may have more behind it: numbers of prompts, choices or beams.
        """
        for _ in range(_WORDS_BEFORE_ID + 1):
            found = external_id
            while found and self._asked:
                if found in self._asked:
                    return self._asked[found]
                found = found[: max(found.rfind("-"), found.rfind("_"), 0)]
            external_id = external_id.partition("-")[2]
        return None


def _take(gone: list[AdapterRequest], finished: "FinishedRequestStats") -> str | None:
    """The adapter's name of a finished request that was followed, which is taken out of `gone`; else None."""
    for place, request in enumerate(gone):
        if (request.external_id, request.generated_tokens) == (finished.request_id, finished.num_generation_tokens):
            return gone.pop(place).name
    return None
