"""Batched scoring against a loop that does one example, one token at a time."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_serve.data import IGNORED, Example, Message, encode, prompt_ids
from unlearn_serve.evaluation import Answer, score_examples, summarise

NEW = 12


def chat(question: str, answer: str) -> Example:
    return Example(prompt=(Message(role="user", content=question),), completion=answer, answer=answer)


EXAMPLES = [
    chat("Who wrote it?", "Ada"),
    chat("?", "Somebody whose name is long enough to be padded against"),
    Example(prompt="Q: where? A:", completion=" Here", answer="Here"),
    Example(prompt=None, completion="Running text.", answer="text"),
    chat("A question that goes on for a good while longer than the others do, to pad them all?", "b"),
]


@pytest.fixture(scope="module")
def model(base: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(base).eval()


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(base)


@torch.no_grad()
def greedy_by_hand(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, example: Example) -> str:
    ids = prompt_ids(example, tokenizer)
    start = len(ids)
    while len(ids) < start + NEW and (len(ids) == start or ids[-1] != 2):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


@torch.no_grad()
def probability_by_hand(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, example: Example) -> float:
    encoded = encode(example, tokenizer, 500)
    logprobs = model(torch.tensor([encoded.input_ids])).logits[0].double().log_softmax(-1)
    chosen = [logprobs[t - 1, label] for t, label in enumerate(encoded.labels) if label != IGNORED]
    return float(torch.stack(chosen).mean().exp())


def score(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, **options: object) -> list[Answer]:
    arguments = {"max_new_tokens": NEW, "batch_size": 3, "max_length": 500} | options
    return score_examples(model, tokenizer, EXAMPLES, **arguments)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_batched_is_one_at_a_time(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
    """Padding, order, positions, end of answers, and none of the checkpoint's own sampling or penalties."""
    for answer, example in zip(score(model, tokenizer, batch_size=batch_size), EXAMPLES, strict=True):
        assert answer.text == greedy_by_hand(model, tokenizer, example)
        # fp32 sums in another order: 1e-5 relative leaves room for a few dozen tokens.
        assert answer.probability == pytest.approx(probability_by_hand(model, tokenizer, example), rel=1e-5)
    texts = [answer.text for answer in score(model, tokenizer)]
    assert len(set(texts)) > 2, "answers that are all alike would show nothing"


def test_correct_means_that_the_gold_string_occurs(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [answer.text for answer in score(model, tokenizer)]
    known = [chat("Who wrote it?", texts[0]), chat("Who wrote it?", f"not {texts[0]}")]
    answers = score_examples(model, tokenizer, known, max_new_tokens=NEW, batch_size=2, max_length=500)
    assert [answer.correct for answer in answers] == [True, False]


def test_progress_counts_every_example_twice(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    done: list[int] = []
    score(model, tokenizer, advance=done.append)
    assert sum(done) == 2 * len(EXAMPLES)


def test_summary_by_hand() -> None:
    answers = [Answer("a", True, 0.5), Answer("b", False, 0.25), Answer("c", False, 0.0), Answer("d", False, 0.25)]
    summary = summarise(answers)
    assert (summary.accuracy, summary.probability, summary.samples) == (0.25, 0.25, 4)
