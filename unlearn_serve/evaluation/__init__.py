"""How much was forgotten and how much was kept: accuracy and probability before and after unlearning."""

from unlearn_serve.evaluation.evaluate import evaluate
from unlearn_serve.evaluation.metrics import accuracy, contains_gold, probability, token_logprobs
from unlearn_serve.evaluation.record import RECORD_NAME
from unlearn_serve.evaluation.scoring import Answer, score_examples, summarise

__all__ = [
    "RECORD_NAME",
    "Answer",
    "accuracy",
    "contains_gold",
    "evaluate",
    "probability",
    "score_examples",
    "summarise",
    "token_logprobs",
]
