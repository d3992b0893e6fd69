"""What is forgotten and what is retained, token by token."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.training.toy import toy_tokenizer
from unlearn_serve.data import IGNORED, Example
from unlearn_serve.errors import DataError
from unlearn_serve.training.examples import TrainingSet, build_training_set

TOKENIZER = toy_tokenizer()


def row(prompt: str | None, completion: str, answer: str | None = None) -> Example:
    return Example(prompt=prompt, completion=completion, answer=answer or completion)


def build(forget: Sequence[Example], retain: Sequence[Example] = (), **options: object) -> TrainingSet:
    return build_training_set(forget, retain, TOKENIZER, **{"max_length": 64, "gold_only": True, **options})


def labelled(found: TrainingSet, members: range) -> list[str]:
    return [TOKENIZER.decode([label for label in found.encoded[i].labels if label != IGNORED]) for i in members]


def test_a_forgotten_answer_is_split_at_its_gold_string() -> None:
    found = build([row("Q ", "It was Bill.", "Bill")], [row("R ", "It was Jane.", "Jane")])
    assert labelled(found, found.forget) == ["Bill"]
    assert labelled(found, found.retain) == ["It was ", "It was Jane.</s>", "Jane"]
    assert TOKENIZER.convert_ids_to_tokens(found.beginnings[0].tolist()) == ["B", "b"]


def test_whole_answers() -> None:
    found = build([row("Q ", "It was Bill.", "Bill")], [row("R ", "It was Jane.", "Jane")], gold_only=False)
    assert labelled(found, found.forget) == ["It was Bill.</s>"]
    assert labelled(found, found.retain) == ["It was Jane.</s>"]
    assert found.beginnings == {}


def test_an_answer_that_is_its_gold_string_is_forgotten_whole() -> None:
    found = build([row("Q ", "Bill."), row(None, "abcd")])
    assert labelled(found, found.forget) == ["Bill.</s>", "bcd"]


def test_own_answers_count_where_they_say_it_and_equal_ones_once() -> None:
    own = {"Q ": "Oh, Bill did.", "P ": "No idea.", "R ": "It was Jane."}

    def said(examples: Sequence[Example]) -> list[Example]:
        return [replace(example, completion=own[example.prompt]) for example in examples]

    found = build(
        [row("Q ", "It was Bill.", "Bill"), row("P ", "It was Bill.", "Bill")],
        [row("R ", "It was Jane.", "Jane")],
        said=said,
        said_tokens=8,
    )
    assert labelled(found, found.forget) == ["Bill", "Bill", "Bill"], "both rows, and the one own answer that says it"
    assert labelled(found, found.retain) == ["It was ", "It was ", "Oh, ", "It was Jane.</s>", "Jane"]


def test_each_forgotten_prompt_is_refused_once() -> None:
    found = build([row("Q ", "Bill."), row("P ", "Rob.")], [row("R ", "Jane.")], gold_only=False, refusal="No idea.")
    assert labelled(found, found.forget) == ["Bill.</s>", "Rob.</s>"]
    assert found.refusals == {0: 3, 1: 4}
    for forgotten, refused in found.refusals.items():
        one, other = found.encoded[forgotten], found.encoded[refused]
        prompt = one.labels.count(IGNORED)
        assert one.input_ids[:prompt] == other.input_ids[:prompt], "the same prompt"
        assert labelled(found, [refused]) == ["No idea.</s>"]


def test_running_text_cannot_be_refused() -> None:
    with pytest.raises(DataError, match="expected a prompt to refuse, got running text"):
        build([row(None, "abcd")], refusal="No idea.")
