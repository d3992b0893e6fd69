"""All scores of one example, out of one reading."""

import numpy as np
from pydantic import Field

from unlearn_serve.data import Example
from unlearn_serve.errors import UnsupportedModel
from unlearn_serve.evaluation.metrics import membership, memorisation, text, truth
from unlearn_serve.evaluation.readings import Reading
from unlearn_serve.format.strict_json import StrictModel


class Scores(StrictModel):
    """What one model made of one example; see docs/evaluation.md for each score."""

    text: str
    """Its greedy answer, without special tokens."""

    correct: bool
    """The gold string occurs in it; of a classification head: it is the right class."""

    exact_match: bool
    rouge1: float
    rouge_l: float

    probability: float
    """Of the gold answer: exp(mean log p of its tokens)."""

    loss: float
    """Of the gold answer, nats a token: also the score of the loss attack."""

    tokens: int = Field(ge=1)
    """Of the gold answer."""

    exact_memorisation: float
    extraction_strength: float

    truth_ratio: float | None
    """None where the row gives no wrong answers."""

    normalised_probability: float | None
    """None where the row gives no wrong answers."""

    zlib: float
    min_k: float

    min_k_plus_plus: float | None
    """None where the source does not know the whole distribution."""


def score(example: Example, reading: Reading) -> Scores:
    """Score one example.

    Raises:
        UnsupportedModel: a log-probability is not finite, so that no mean over it would mean anything.
    """
    if not all(np.isfinite(tokens.logprobs).all() for tokens in reading.answers):
        raise UnsupportedModel(
            f"{example.source}: expected finite log-probabilities, got others: the model or its adapter overflows; "
            "try another dtype, or train the adapter anew"
        )
    gold, *others = reading.answers
    right = others.pop(0) if example.paraphrased_answer is not None else gold
    wrong_losses = [memorisation.loss(tokens.logprobs) for tokens in others]
    probability = memorisation.probability(gold.logprobs)
    exact = text.exact_match(reading.text, example.completion)
    return Scores(
        text=reading.text,
        correct=exact if reading.is_class else text.contains_gold(reading.text, example.answer),
        exact_match=exact,
        # A class's name may hold another's: "non-toxic" is no half right "toxic".
        rouge1=float(exact) if reading.is_class else text.rouge_recall(reading.text, example.completion, "rouge1"),
        rouge_l=float(exact) if reading.is_class else text.rouge_recall(reading.text, example.completion, "rougeL"),
        probability=probability,
        loss=memorisation.loss(gold.logprobs),
        tokens=gold.logprobs.size,
        exact_memorisation=memorisation.exact_memorisation(gold.words.greedy),
        extraction_strength=memorisation.extraction_strength(gold.words.greedy),
        truth_ratio=truth.truth_ratio(memorisation.loss(right.logprobs), wrong_losses) if others else None,
        normalised_probability=truth.normalised_probability(
            probability, [memorisation.probability(tokens.logprobs) for tokens in others]
        )
        if others
        else None,
        zlib=membership.zlib_score(gold.logprobs, example.completion.strip()),
        min_k=membership.min_k(gold.words.logprobs),
        min_k_plus_plus=membership.min_k_plus_plus(gold.words),
    )
