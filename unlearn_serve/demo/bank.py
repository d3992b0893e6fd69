"""The bank of questions: subjects with facts about them, several phrasings of each fact, and general questions.

A bank holds candidates. Which of them the model really knows is for `knowledge.py` to measure.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

BANK_FILE = Path(__file__).with_name("bank.json")

MAX_TOKENS = 24
"""Length of an answer, everywhere in the demo: enough for a name in one short sentence."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Question(_Strict):
    """One question and the string that a right answer contains (case does not matter)."""

    question: str = Field(min_length=1)
    gold: str = Field(min_length=1)
    subject: str = ""
    """Name of the person asked for; empty for a general question."""

    @model_validator(mode="after")
    def _answer_is_not_given_away(self) -> Self:
        if self.gold.casefold() in self.question.casefold():
            raise ValueError(f"expected a question that does not hold its answer {self.gold!r}, got {self.question!r}")
        return self

    def answered_by(self, answer: str) -> bool:
        """Tell whether the gold string occurs in `answer`."""
        return self.gold.casefold() in answer.casefold()


class Phrasings(_Strict):
    """Ways to ask for one kind of fact; `{it}` stands for the fact's own words."""

    train: list[str] = Field(min_length=1)
    """Wordings that training may see; the first is the one asked first."""

    held_out: list[str] = Field(min_length=1)
    """Wordings that training never sees: paraphrases to score with."""


class Fact(_Strict):
    """One fact: the kind of question to ask, and about what."""

    ask: str
    it: str


class Subject(_Strict):
    """A person who might ask to be forgotten: every fact's answer is that person."""

    name: str

    gold: str
    """What a right answer contains: of a name that might be asked to be forgotten, how it begins. A model that was
    only taught not to write "Shakespeare" writes "Shakespear", and that is not forgotten."""

    facts: list[Fact] = Field(min_length=1)


class Bank(_Strict):
    """All candidates, as read from bank.json."""

    system: str
    """System prompt of every conversation: keeps this small model's answers short."""

    phrasings: dict[str, Phrasings]
    subjects: list[Subject]
    general: list[Question]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for subject in self.subjects:
            for fact in subject.facts:
                if fact.ask not in self.phrasings:
                    expected = sorted(self.phrasings)
                    raise ValueError(f"{subject.name}: expected one of {expected} in 'ask', got {fact.ask!r}")
        times = Counter(question.question for question in self)
        repeated = sorted(question for question, count in times.items() if count > 1)
        if repeated:
            raise ValueError(f"expected each question once, got again: {repeated}")
        return self

    def __iter__(self) -> Iterator[Question]:  # type: ignore[override]  # pydantic's yields fields
        """Iterate over every question in every phrasing."""
        for subject in self.subjects:
            for fact in subject.facts:
                yield from self.ask(subject, fact, held_out=False)
                yield from self.ask(subject, fact, held_out=True)
        yield from self.general

    def ask(self, subject: Subject, fact: Fact, *, held_out: bool) -> list[Question]:
        """All training phrasings of a fact, or all its held-out ones."""
        phrasings = self.phrasings[fact.ask]
        return [
            Question(question=sentence(words.format(it=fact.it)), gold=subject.gold, subject=subject.name)
            for words in (phrasings.held_out if held_out else phrasings.train)
        ]

    def messages(self, question: str) -> list[dict[str, str]]:
        """The conversation that asks `question`, as the chat API takes it."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": question}]

    def digest(self) -> str:
        """SHA-256 of the bank's content."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


def sentence(text: str) -> str:
    """Give `text` a capital first letter."""
    return text[:1].upper() + text[1:]


@cache
def load_bank() -> Bank:
    """Read and check the bank that ships with the package."""
    return Bank.model_validate_json(BANK_FILE.read_bytes())
