"""What a release answers on a server that was started on it and has never swapped."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import httpx

from benchmarks.servers import NAME
from benchmarks.soak.setting import Setting

AT_ONCE = 4
Asked = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt and an answer, as token ids."""


def gaps_under(
    setting: Setting, asked: Mapping[str, Sequence[Asked]], *, say: Callable[[str], None]
) -> dict[str, dict[Asked, list[float]]]:
    """Return, by release, the gap (see attribution.py) of each token of each answer, in the order of its tokens.

    One server after the other, each started for its release alone.
    """
    found: dict[str, dict[Asked, list[float]]] = {}
    for number, (release, answers) in enumerate(asked.items()):
        channel = f"reference-{number}"
        setting.inputs.promote(release, channel)
        server = setting.server(channel, channel)
        try:
            server.wait_ready()
            missing = list(dict.fromkeys(answers))
            say(f"{release[:12]} computes {len(missing)} answers afresh")
            gaps = asyncio.run(_all_gaps(server.url, missing))
            found[release] = dict(zip(missing, gaps, strict=True))
        finally:
            server.stop()
    return found


async def _all_gaps(url: str, asked: Sequence[Asked]) -> list[list[float]]:
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(client: httpx.AsyncClient, prompt: tuple[int, ...], answer: tuple[int, ...]) -> list[float]:
        async with turn:
            return await _gaps(client, prompt, answer)

    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        return list(await asyncio.gather(*(one(client, *each) for each in asked)))


async def _gaps(client: httpx.AsyncClient, prompt: tuple[int, ...], answer: tuple[int, ...]) -> list[float]:
    # One pass over both. vLLM reads no prefix cache where a prompt's log-probabilities are asked for.
    body = {"model": NAME, "prompt": [*prompt, *answer], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
    response = (await client.post("/v1/completions", json=body)).raise_for_status()
    # One map a token, from token ids to log-probabilities: of the token itself and of the likeliest.
    positions = response.json()["choices"][0]["prompt_logprobs"][len(prompt) :]
    return [
        max(one["logprob"] for one in candidates.values()) - candidates[str(token)]["logprob"]
        for candidates, token in zip(positions, answer, strict=True)
    ]
