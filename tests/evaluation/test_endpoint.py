"""What an endpoint's answers are refused for; the real server is in test_served.py."""

import json
from typing import Any

import httpx
import pytest

from unlearn_serve.errors import ServingError
from unlearn_serve.evaluation.endpoint import RELEASE_HEADER, Endpoint
from unlearn_serve.evaluation.readings import Probe

PROBE = Probe((1, 2), ((3, 4), (5,)), (True, True))


def entry(token: int, logprob: float, rank: int) -> dict[str, Any]:
    """As vLLM writes it: the token itself, and the likeliest one where it is another."""
    found = {str(token): {"logprob": logprob, "rank": rank, "decoded_token": "x"}}
    return found if rank == 1 else {"99": {"logprob": -0.1, "rank": 1, "decoded_token": "y"}, **found}


class Answers:
    """A server's side of it, with faults to be switched on."""

    def __init__(self, *, scored: bool = True, status: int = 200, releases: tuple[str, ...] = ("a" * 64,)) -> None:
        self.scored, self.status, self.releases = scored, status, releases
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        headers = {RELEASE_HEADER: self.releases[len(self.bodies) % len(self.releases)]}
        choices: list[dict[str, Any]] = [{"index": 0, "text": " Ada. "}]
        if "prompt_logprobs" in body:
            first = [None, entry(2, -1, 1), entry(3, -0.5, 1), entry(4, -2.0, 7)]
            choices = [
                {"index": 1, "text": "", "prompt_logprobs": [None, entry(2, -1, 1), entry(5, -3.0, 2)]},
                {"index": 0, "text": "", "prompt_logprobs": first if self.scored else None},
            ]
        return httpx.Response(self.status, json={"choices": choices}, headers=headers)


def endpoint(answers: Answers) -> Endpoint:
    client = httpx.Client(base_url="http://127.0.0.1:9", transport=httpx.MockTransport(answers))
    return Endpoint(client, "m", concurrency=1)


def test_log_probabilities_and_ranks_of_each_answers_tokens() -> None:
    answers = Answers()
    opened = endpoint(answers)
    (reading,) = opened.read([PROBE], max_new_tokens=5)
    assert reading.text == "Ada."
    one, two = reading.answers
    assert (one.logprobs.tolist(), one.greedy.tolist(), one.closed) == ([-0.5, -2.0], [True, False], True)
    assert (two.logprobs.tolist(), two.greedy.tolist()) == ([-3.0], [False])
    assert one.mean is None
    assert opened.release == "a" * 64
    said, scored = answers.bodies
    assert (said["prompt"], said["max_tokens"], said["temperature"]) == ([[1, 2]], 5, 0.0)
    assert (scored["prompt"], scored["prompt_logprobs"]) == ([[1, 2, 3, 4], [1, 2, 5]], 0)
    # Sampling defaults of the checkpoint must not reach a greedy answer.
    assert said["repetition_penalty"] == said["top_p"] == 1.0


def test_a_swap_on_the_way_is_an_error_not_a_mixture() -> None:
    with pytest.raises(ServingError, match=r"one release throughout, got answers under a{64} and b{64}"):
        endpoint(Answers(releases=("a" * 64, "b" * 64))).read([PROBE], max_new_tokens=5)


def test_a_server_without_prompt_logprobs_is_refused() -> None:
    with pytest.raises(ServingError, match="one entry for each token of the prompt, got none"):
        endpoint(Answers(scored=False)).read([PROBE], max_new_tokens=5)


def test_a_refusal_and_no_server() -> None:
    with pytest.raises(ServingError, match="expected status 200 from /v1/completions, got 400"):
        endpoint(Answers(status=400)).read([PROBE], max_new_tokens=5)
    with pytest.raises(ServingError, match="no answer from /v1/models"), Endpoint.connect("http://127.0.0.1:9"):
        pass
