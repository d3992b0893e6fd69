"""What is read off a model, whichever model it is: the seam between sources (checkpoint, endpoint) and metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from unlearn_serve.data import Encoded, Example, encode

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Probe:
    """One question as token ids.

    Attributes:
        prompt: what comes before every answer; at least one token.
        answers: continuations to be scored: the gold answer, then its paraphrase if there is one, then wrong answers.
        closed: by answer, whether its last token ends the turn.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    closed: tuple[bool, ...]


@dataclass(frozen=True)
class Tokens:
    """What a model thinks of one answer of n tokens, token by token.

    Attributes:
        logprobs: [n] fp64, natural log of p(token | what is before it).
        greedy: [n], whether the token is the most likely one in its place.
        mean: [n], mean over the vocabulary of log p, weighted by p (minus the entropy); None where the source cannot
            tell.
        deviation: [n], standard deviation of log p under p; None where the source cannot tell.
        closed: the last token ends the turn and is no word of the answer.
    """

    logprobs: Floats
    greedy: Bools
    mean: Floats | None = None
    deviation: Floats | None = None
    closed: bool = False

    @property
    def words(self) -> "Tokens":
        """The same without the token that ends the turn: all but the end of memorised text is telling."""
        if not self.closed or len(self.logprobs) == 1:
            return self
        return Tokens(
            self.logprobs[:-1],
            self.greedy[:-1],
            None if self.mean is None else self.mean[:-1],
            None if self.deviation is None else self.deviation[:-1],
        )


@dataclass(frozen=True)
class Reading:
    """What was read for one probe: the greedy answer as text, and the tokens of each of the probe's answers.

    `is_class` tells that the text is the name of one of the model's classes, which no other answer contains.
    """

    text: str
    answers: tuple[Tokens, ...]
    is_class: bool = False


class Source(Protocol):
    """A model that can be read."""

    def read(
        self, probes: Sequence[Probe], *, max_new_tokens: int, advance: Callable[[int], None] = ...
    ) -> list[Reading]:
        """Read every probe, in order; `advance` is told how many were done since the last call."""
        ...


def probe(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Probe:
    """Tokenise an example with all its answers, for a decoder.

    Raises:
        DataError: it cannot be encoded, or is longer than `max_length` tokens.
    """
    return probe_with(example, lambda one: encode(one, tokenizer, max_length))


def probe_with(example: Example, encode_one: Callable[[Example], Encoded]) -> Probe:
    """Encode an example with each of its answers in turn.

    Raises:
        DataError: as `encode_one`.
    """
    gold = encode_one(example)
    others = [answer for answer in (example.paraphrased_answer, *example.perturbed_answers) if answer is not None]
    encoded = [gold, *(encode_one(replace(example, completion=answer)) for answer in others)]
    start = len(gold.input_ids) - gold.answer_tokens
    return Probe(
        prompt=tuple(gold.input_ids[:start]),
        answers=tuple(_answer(one) for one in encoded),
        closed=tuple(one.closed for one in encoded),
    )


def _answer(encoded: Encoded) -> tuple[int, ...]:
    return tuple(encoded.input_ids[len(encoded.input_ids) - encoded.answer_tokens :])
