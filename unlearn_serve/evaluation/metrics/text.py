"""How a greedy answer compares with the right one, as text."""

import logging
from functools import cache
from typing import Literal

from rouge_score import rouge_scorer

logging.getLogger("absl").setLevel(logging.WARNING)  # it tells at every scorer that it uses the default tokenizer


def contains_gold(answer: str, gold: str) -> bool:
    """Whether the gold string occurs in the answer, whatever its case; runs of white space count as one space."""
    return _plain(gold) in _plain(answer)


def exact_match(answer: str, right: str) -> bool:
    """Whether the answer is the right one to the letter, whatever its case; runs of white space count as one space."""
    return _plain(answer) == _plain(right)


def rouge_recall(answer: str, right: str, kind: Literal["rouge1", "rougeL"]) -> float:
    """Share of the right answer's stemmed words that the answer repeats: any of them (rouge1), in order (rougeL).

    The words are runs of a-z and 0-9 of the lower-cased text, as everywhere ROUGE is reported; other scripts have none
    and give 0.
    """
    return float(_scorer().score(right, answer)[kind].recall)


@cache
def _scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
