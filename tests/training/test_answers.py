"""The model's own answers, and which of their tokens are the gold string."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.training.toy import FORGET, RETAIN, toy_tokenizer
from unlearn_serve.data import IGNORED, Encoded, Example, read_examples
from unlearn_serve.training.answers import encode_gold, own_answers
from unlearn_serve.training.spellings import Spellings

TOKENIZER = toy_tokenizer()


def text(encoded: Encoded, *, labelled: bool) -> str:
    return TOKENIZER.decode(
        [i for i, label in zip(encoded.input_ids, encoded.labels, strict=True) if (label != IGNORED) == labelled]
    )


def test_own_answers_are_what_the_model_says(toy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy / "model")
    examples = read_examples(toy / "forget.jsonl") + read_examples(toy / "retain.jsonl")
    twice = [*examples, examples[0], Example(prompt=None, completion="running text", answer="text")]
    answers = own_answers(model, TOKENIZER, twice, max_new_tokens=20)
    assert [a.completion for a in answers] == list((FORGET | RETAIN).values()), "it knows its facts; text has no answer"
    assert [a.answer for a in answers] == [e.answer for e in examples]


def test_gold_string_and_the_words_before_it() -> None:
    example = Example(prompt="Who? ", completion="It was BILL, Bill.", answer="Bill")
    parts = encode_gold(example, TOKENIZER, 64)
    assert parts is not None
    gold, before = parts
    assert text(gold, labelled=True) == "BILL"
    assert text(gold, labelled=False) == "Who? It was "
    assert before is not None
    assert text(before, labelled=True) == "It was "
    assert text(before, labelled=False) == "Who? "


def test_gold_string_first_or_absent() -> None:
    first = encode_gold(Example(prompt="Who? ", completion="Bill.", answer="Bill"), TOKENIZER, 64)
    assert first is not None
    assert first[1] is None
    assert encode_gold(Example(prompt="Who? ", completion="Jane.", answer="Bill"), TOKENIZER, 64) is None


def test_spellings() -> None:
    spellings = Spellings(TOKENIZER)
    found = TOKENIZER.convert_ids_to_tokens(spellings.beginnings("Bill", TOKENIZER.convert_tokens_to_ids("x")).tolist())
    assert sorted(found) == ["B", "b", "x"]
    assert spellings.beginnings("?", 0).dtype is torch.int64
