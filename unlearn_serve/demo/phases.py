"""Scores of one phase of the story, measured over HTTP on the running server."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from pydantic import BaseModel, ConfigDict
from rich.progress import Progress, TaskID

from unlearn_serve.demo.bank import MAX_TOKENS, load_bank
from unlearn_serve.demo.knowledge import Row
from unlearn_serve.demo.progress import progress_bars
from unlearn_serve.demo.stream import MODEL

CONCURRENCY = 10
TOP_LOGPROBS = 5


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Token(_Strict):
    """One generated token with the most likely ones in its place."""

    text: str
    top: dict[str, float]
    """Log-probability by token, of the most likely ones; the generated one is among them."""


class Answer(_Strict):
    """The server's greedy answer to one question, and how likely it finds the plain model's right answer."""

    question: str
    gold: str
    text: str
    correct: bool
    """The gold string occurs in the answer."""

    probability: float
    """exp(mean log-probability) of the tokens of the plain model's own right answer."""

    fingerprint: str
    tokens: list[Token]


class Score(_Strict):
    """Mean over one set of questions."""

    accuracy: float
    probability: float
    samples: int


class Phase(_Strict):
    """What the server answered, and how well, while one release was live."""

    name: str
    release: str
    scores: dict[str, Score]
    """By set; `forget` and `forget_paraphrase` cover every deletion request of the story that is live."""

    answers: dict[str, list[Answer]]
    """By set, as the questions were asked; forget1, forget1_paraphrase, forget2, ..., retain, general."""


class Scorer:
    """Asks the same questions of the same server, phase after phase."""

    def __init__(self, *, url: str, checkpoint: Path, sets: dict[str, list[Row]]) -> None:
        from transformers import AutoTokenizer

        self._url = url
        self._sets = sets
        self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)

    def score(self, *, name: str, release: str, live_requests: Sequence[int]) -> Phase:
        """Ask every question of every set.

        Args:
            name: of the phase.
            release: that is live: a digest, or `plain`.
            live_requests: numbers of the deletion requests whose sets make up `forget` and `forget_paraphrase`.
        """
        with progress_bars() as progress:
            task = progress.add_task(f"scoring: {name}", total=sum(map(len, self._sets.values())))
            answers = asyncio.run(self._ask_all(progress, task))
        scores = {kind: _mean(answers[kind]) for kind in ("retain", "general")}
        for suffix in ("", "_paraphrase"):
            members = [answers[f"forget{number}{suffix}"] for number in live_requests]
            scores[f"forget{suffix}"] = _mean([answer for member in members for answer in member])
        scores |= {kind: _mean(given) for kind, given in answers.items() if kind not in scores}
        return Phase(name=name, release=release, scores=scores, answers=answers)

    async def _ask_all(self, progress: Progress, task: TaskID) -> dict[str, list[Answer]]:
        turn = asyncio.Semaphore(CONCURRENCY)

        async def one(client: AsyncOpenAI, row: Row) -> Answer:
            async with turn:
                answer = await self._ask(client, row)
            progress.advance(task)
            return answer

        async with AsyncOpenAI(base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            return {
                kind: list(await asyncio.gather(*(one(client, row) for row in rows)))
                for kind, rows in self._sets.items()
            }

    async def _ask(self, client: AsyncOpenAI, row: Row) -> Answer:
        messages: Any = load_bank().messages(row.question)
        completion = await client.chat.completions.create(
            model=MODEL,
            messages=messages,
            temperature=0.0,
            max_tokens=MAX_TOKENS,
            logprobs=True,
            top_logprobs=TOP_LOGPROBS,
        )
        choice = completion.choices[0]
        text = choice.message.content or ""
        generated = (choice.logprobs and choice.logprobs.content) or []
        tokens = [
            Token(
                text=token.token,
                top={token.token: token.logprob, **{other.token: other.logprob for other in token.top_logprobs}},
            )
            for token in generated
        ]
        return Answer(
            question=row.question,
            gold=row.gold,
            text=text.strip(),
            correct=row.gold.casefold() in text.casefold(),
            probability=await self._probability(client, row),
            fingerprint=completion.system_fingerprint or "",
            tokens=tokens,
        )

    async def _probability(self, client: AsyncOpenAI, row: Row) -> float:
        """exp(mean log-probability) of the tokens of `row.answer`, after the question's conversation."""
        prompt: list[int] = self._tokenizer.apply_chat_template(
            load_bank().messages(row.question), add_generation_prompt=True, return_dict=False
        )
        answer: list[int] = self._tokenizer(row.answer, add_special_tokens=False)["input_ids"]
        completion = await client.completions.create(
            model=MODEL,
            prompt=[*prompt, *answer],
            temperature=0.0,
            max_tokens=1,
            extra_body={"prompt_logprobs": 0},
        )
        # One entry a prompt token: None for the first, else a map from token ids to their log-probabilities.
        positions = (completion.choices[0].model_extra or {})["prompt_logprobs"][len(prompt) :]
        logprobs = [position[str(token)]["logprob"] for position, token in zip(positions, answer, strict=True)]
        return math.exp(sum(logprobs) / len(logprobs))


def _mean(answers: Sequence[Answer]) -> Score:
    count = len(answers)
    return Score(
        accuracy=sum(answer.correct for answer in answers) / count,
        probability=sum(answer.probability for answer in answers) / count,
        samples=count,
    )
