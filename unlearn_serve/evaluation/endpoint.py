"""Read a model where it is served: what is live can be audited, not only what was trained.

Speaks the OpenAI API's /v1/completions with vLLM's `prompt_logprobs`. Token ids go out, so the server reads exactly the
tokens that a checkpoint would be given.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

import httpx
import numpy as np

from unlearn_serve.errors import ServingError
from unlearn_serve.evaluation.readings import Probe, Reading, Tokens

RELEASE_HEADER = "x-unlearn-release"
"""The response header that names the release under which a server of this project answers."""

_GREEDY = {
    "temperature": 0.0,
    # A server fills whatever is left out from the checkpoint's own defaults.
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class Endpoint:
    """A served model: a `Source` that knows the rank of each token but not the whole distribution."""

    def __init__(self, client: httpx.Client, served_model: str, *, concurrency: int) -> None:
        """Use `connect`."""
        self._client = client
        self._served_model = served_model
        self._concurrency = concurrency
        self._releases: set[str | None] = set()

    @classmethod
    @contextmanager
    def connect(cls, url: str, *, served_model: str | None = None, concurrency: int = 16) -> Iterator[Self]:
        """Open a connection; the API key, if any, comes from VLLM_API_KEY.

        Args:
            url: base URL of the server, without /v1.
            served_model: the model's name there; None takes the only one there is.
            concurrency: requests in flight.

        Raises:
            ServingError: no answer, or no such model.
        """
        headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("VLLM_API_KEY")) else {}
        with httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=600) as client:
            endpoint = cls(client, "", concurrency=concurrency)
            names = [model["id"] for model in endpoint._ask("GET", "/v1/models")["data"]]
            if served_model is None and len(names) > 1:
                raise ServingError(f"{url}: expected the model's name, for the server has {', '.join(names)}")
            if served_model is not None and served_model not in names:
                raise ServingError(f"{url}: expected one of the models {', '.join(names)}, got {served_model!r}")
            endpoint._served_model = served_model or names[0]
            endpoint._releases.clear()
            yield endpoint

    @property
    def served_model(self) -> str:
        """The model's name at the server."""
        return self._served_model

    @property
    def release(self) -> str | None:
        """The release under which every answer so far was computed; None where the server names none.

        Raises:
            ServingError: it changed on the way, so that the answers are of no one release.
        """
        if len(self._releases) > 1:
            named = " and ".join(sorted(str(release) for release in self._releases))
            raise ServingError(
                f"{self._client.base_url}: expected one release throughout, got answers under {named}: "
                "the channel moved; evaluate again"
            )
        return next(iter(self._releases), None)

    def read(
        self, probes: Sequence[Probe], *, max_new_tokens: int, advance: Callable[[int], None] = lambda _: None
    ) -> list[Reading]:
        """Read every probe; see `Source`.

        Raises:
            ServingError: the server does not answer, refuses, or does not give log-probabilities of the prompt.
        """
        readings = []
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                for reading in pool.map(lambda probe: self._read(probe, max_new_tokens), probes):
                    readings.append(reading)
                    advance(1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        _ = self.release
        return readings

    def _read(self, probe: Probe, max_new_tokens: int) -> Reading:
        said = self._complete([list(probe.prompt)], max_tokens=max_new_tokens)
        scored = self._complete([[*probe.prompt, *answer] for answer in probe.answers], max_tokens=1, prompt_logprobs=0)
        return Reading(
            said[0]["text"].strip(),
            tuple(
                self._tokens(choice, probe, answer, closed)
                for choice, answer, closed in zip(scored, probe.answers, probe.closed, strict=True)
            ),
        )

    def _tokens(self, choice: dict[str, Any], probe: Probe, answer: Sequence[int], closed: bool) -> Tokens:
        positions = choice.get("prompt_logprobs")
        if not positions or len(positions) != len(probe.prompt) + len(answer):
            raise ServingError(
                f"{self._client.base_url}: expected `prompt_logprobs`, one entry for each token of the prompt, got "
                f"{'none' if not positions else len(positions)}; only servers that offer it, as vLLM does, can be read"
            )
        # Each entry is a map from token ids to their log-probabilities and ranks; the token itself is always in it.
        found = [position[str(token)] for position, token in zip(positions[len(probe.prompt) :], answer, strict=True)]
        return Tokens(
            np.array([one["logprob"] for one in found], dtype=np.float64),
            np.array([one["rank"] == 1 for one in found]),
            closed=closed,
        )

    def _complete(self, prompts: list[list[int]], **options: Any) -> list[dict[str, Any]]:
        body = {"model": self._served_model, "prompt": prompts, **_GREEDY, **options}
        choices: list[dict[str, Any]] = self._ask("POST", "/v1/completions", json=body)["choices"]
        if len(choices) != len(prompts):
            raise ServingError(f"{self._client.base_url}: expected {len(prompts)} choices, got {len(choices)}")
        return sorted(choices, key=lambda choice: int(choice["index"]))

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServingError(f"{self._client.base_url}: no answer from {path}: {error}") from error
        if response.status_code != 200:
            raise ServingError(
                f"{self._client.base_url}: expected status 200 from {path}, got {response.status_code}: "
                f"{' '.join(response.text.split())[:300]}"
            )
        self._releases.add(response.headers.get(RELEASE_HEADER))
        answer: dict[str, Any] = response.json()
        return answer
