"""From an example and what was read of it to all its scores."""

import math
import zlib

import numpy as np
import pytest
from data.tiny_tokenizer import byte_tokenizer

from unlearn_serve.data import Example
from unlearn_serve.errors import UnsupportedModel
from unlearn_serve.evaluation.readings import Reading, Tokens, probe
from unlearn_serve.evaluation.scores import score

EXAMPLE = Example(
    prompt="Who?",
    completion=" Ada did",
    answer="Ada",
    paraphrased_answer=" It was Ada",
    perturbed_answers=(" Bob did", " Carl did"),
    source="f:1",
)


def tokens(*probabilities: float, greedy: str = "") -> Tokens:
    hits = np.array([mark == "+" for mark in greedy or "+" * len(probabilities)])
    return Tokens(np.log(np.array(probabilities)), hits, closed=True)


def test_a_probe_holds_the_gold_answer_its_paraphrase_and_the_wrong_ones() -> None:
    tokenizer = byte_tokenizer()
    found = probe(EXAMPLE, tokenizer, 100)
    assert tokenizer.decode(found.prompt) == "Who?"
    texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in found.answers]
    assert texts == [" Ada did", " It was Ada", " Bob did", " Carl did"]
    assert found.closed == (True,) * 4
    assert all(answer[-1] == tokenizer.eos_token_id for answer in found.answers)
    assert probe(Example(prompt=None, completion="text", answer="text"), tokenizer, 100).closed == (False,)


def test_all_scores_by_hand() -> None:
    gold = tokens(0.5, 0.25, 0.5, greedy="+-+")  # the last one ends the turn
    reading = Reading("ada did not", (gold, tokens(0.25), tokens(0.5), tokens(0.125)))
    found = score(EXAMPLE, reading)
    assert (found.text, found.correct, found.exact_match, found.rouge_l) == ("ada did not", True, False, 1.0)
    assert found.loss == pytest.approx(4 / 3 * math.log(2))
    assert found.probability == pytest.approx(2 ** (-4 / 3))
    assert found.tokens == 3
    # Words only: one of two is greedy, and it is not the last one.
    assert (found.exact_memorisation, found.extraction_strength) == (0.5, 0.5)
    assert found.min_k == pytest.approx(2 * math.log(2)), "40 % of two words: the one at 1/4"
    assert found.min_k_plus_plus is None
    assert found.zlib == pytest.approx(found.loss / len(zlib.compress(b"Ada did")))
    # Wrong: exp(-mean(ln 2, ln 8)) = 1/4; right: the paraphrase's 1/4, not the gold answer's.
    assert found.truth_ratio == pytest.approx(1.0)
    assert found.normalised_probability == pytest.approx(2 ** (-4 / 3) / (2 ** (-4 / 3) + 0.5 + 0.125))


def test_a_model_that_overflows_is_refused_not_averaged() -> None:
    plain = Example(prompt="Who?", completion=" Ada", answer="Ada", source="f:7")
    with pytest.raises(UnsupportedModel, match="f:7: expected finite log-probabilities, got others"):
        score(plain, Reading("", (tokens(0.5, math.nan),)))
