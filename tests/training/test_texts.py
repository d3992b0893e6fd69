"""Forgotten rows as running text: every token of a decoder's, spans of an encoder-decoder's prompt."""

import random

import pytest

from tests.training.toy import toy_tokenizer
from unlearn_serve.data import IGNORED, Encoded
from unlearn_serve.errors import TrainingError
from unlearn_serve.training.examples import TrainingSet
from unlearn_serve.training.texts import corrupted, with_texts

TEMPLATE, EOS = [10, 11], 2
SENTINELS = list(range(300, 320))


def training_set(*examples: Encoded) -> TrainingSet:
    """Two forgotten ones, or the only one, and the rest retained."""
    count = min(2, len(examples))
    return TrainingSet(list(examples), range(count), range(count, len(examples)), beginnings={}, refusals={})


def row(*tokens: int, answer: int) -> Encoded:
    ids = [*TEMPLATE, *tokens, EOS]
    prompt = len(ids) - answer - 1
    return Encoded(ids, [IGNORED] * prompt + ids[prompt:], closed=True)


def test_a_text_is_all_that_is_the_rows_own() -> None:
    examples = training_set(row(20, 21, 22, answer=1), row(30, 31, answer=1), row(40, 41, answer=1))

    found = with_texts(examples, toy_tokenizer(), two_stacks=False, seed=0)

    assert (found.forget, found.retain, found.encoded[:3]) == (examples.forget, examples.retain, examples.encoded)
    assert found.texts == {0: 3, 1: 4}
    assert [found.encoded[i].input_ids for i in (3, 4)] == [examples.encoded[i].input_ids for i in (0, 1)]
    assert found.encoded[3].labels == [IGNORED, IGNORED, 20, 21, 22, IGNORED], "neither template nor end of turn"
    assert found.encoded[4].labels == [IGNORED, IGNORED, 30, 31, IGNORED]


def test_of_a_single_row_everything_is_its_own_but_the_first_token() -> None:
    (_, text) = with_texts(training_set(row(20, 21, answer=1)), toy_tokenizer(), two_stacks=False, seed=0).encoded

    assert text.labels == [IGNORED, 11, 20, 21, IGNORED]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 20, 61, 400])
@pytest.mark.parametrize("seed", range(5))
def test_spans_put_back_in_place_of_their_sentinels_give_the_prompt(length: int, seed: int) -> None:
    tokens = [*range(1000, 1000 + length), EOS]

    found = corrupted(tokens, SENTINELS, special={EOS}, end=[EOS], rng=random.Random(seed))

    answer = found.input_ids[len(found.prompt) :]
    assert found.closed
    assert answer[-1] == EOS
    spans: dict[int, list[int]] = {}
    for token in answer[:-1]:
        if token in SENTINELS:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    assert list(spans) == SENTINELS[: len(spans)]
    assert spans.pop(list(spans)[-1]) == [], "one more sentinel closes it"
    assert all(spans.values())
    assert sum(map(len, spans.values())) == max(1, round(0.15 * length))
    assert [one for token in found.prompt for one in spans.get(token, [token])] == tokens


def test_an_encoder_decoder_gets_a_text_of_its_prompt() -> None:
    tokenizer = toy_tokenizer(sentinels=3)
    prompt = tokenizer("Ham is by Bill. ").input_ids
    rows = [Encoded([*prompt, 7, EOS], [IGNORED] * len(prompt) + [7, EOS], closed=True) for _ in range(2)]

    found = with_texts(training_set(*rows), tokenizer, two_stacks=True, seed=0)
    again = with_texts(training_set(*rows), tokenizer, two_stacks=True, seed=0)

    first, second = (found.encoded[found.texts[i]] for i in (0, 1))
    sentinels = tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"])
    assert first.prompt[-1] != EOS
    assert sentinels[0] in first.prompt
    assert 7 not in first.input_ids
    assert first != second, "each row its own spans"
    assert found.encoded == again.encoded


def test_an_encoder_decoder_without_sentinels_is_refused() -> None:
    examples = training_set(row(20, 21, answer=1), row(30, 31, answer=1))

    with pytest.raises(TrainingError, match=r"lm_on_text: expected sentinel tokens .* got 0; set lm_on_text to False"):
        with_texts(examples, toy_tokenizer(), two_stacks=True, seed=0)
