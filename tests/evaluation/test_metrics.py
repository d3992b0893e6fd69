"""Each metric against a value worked out by hand."""

import math
import zlib

import numpy as np
import pytest

from unlearn_serve.evaluation.metrics import membership, memorisation, text, truth
from unlearn_serve.evaluation.metrics.utility import model_utility
from unlearn_serve.evaluation.readings import Tokens


def logs(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities))


def hits(pattern: str) -> np.ndarray:
    return np.array([mark == "+" for mark in pattern])


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("The capital is Paris.", "paris", True),
        ("PARIS", "Paris", True),
        ("It lies in William\n  Shakespeare's house", "william shakespeare", True),
        ("Die STRASSE", "straße", True),
        ("Par is", "Paris", False),
        ("London", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_contains_gold(answer: str, gold: str, expected: bool) -> None:
    assert text.contains_gold(answer, gold) is expected


def test_exact_match_is_more_than_containing_the_gold_string() -> None:
    assert text.exact_match("it was\n ADA.", "It was Ada.")
    assert not text.exact_match("It was Ada. Really.", "It was Ada.")


def test_rouge_is_recall_of_the_right_answers_words() -> None:
    # "the cat sat on the mat" has 6 words; the answer has the, sat, cat: 3 of them, 2 in order (the cat, or the sat).
    assert text.rouge_recall("the sat cat", "the cat sat on the mat", "rouge1") == pytest.approx(3 / 6)
    assert text.rouge_recall("the sat cat", "the cat sat on the mat", "rougeL") == pytest.approx(2 / 6)
    # Long answers are not punished: recall, not F1. And words are stemmed.
    assert text.rouge_recall("a great many running dogs", "dog runs", "rouge1") == 1.0


def test_probability_is_the_geometric_mean() -> None:
    # Three tokens of 1/2, 1/4 and 1/8: (1/64)^(1/3) = 1/4.
    assert memorisation.probability(logs(0.5, 0.25, 0.125)) == pytest.approx(0.25)
    assert memorisation.loss(logs(0.5, 0.25, 0.125)) == pytest.approx(math.log(4))
    assert memorisation.probability(np.zeros(3)) == 1.0
    assert memorisation.probability(np.array([-math.inf, 0.0])) == 0.0
    assert memorisation.probability(np.array([1e-7])) == 1.0, "rounding never gives more than one"
    with pytest.raises(ValueError, match="expected at least one answer token"):
        memorisation.probability(np.array([]))


@pytest.mark.parametrize(
    ("greedy", "memorised", "strength"),
    [
        ("++++", 1.0, 1.0),
        ("-+++", 3 / 4, 3 / 4),  # one token given, the rest follows: k = 1
        ("+-++", 3 / 4, 2 / 4),  # the miss in second place must be given: k = 2
        ("+++-", 3 / 4, 1 / 4),  # open-unlearning lets k reach n - 1 only
        ("----", 0.0, 1 / 4),
        ("+", 1.0, 1.0),
        ("-", 0.0, 1.0),
    ],
)
def test_exact_memorisation_and_extraction_strength(greedy: str, memorised: float, strength: float) -> None:
    assert memorisation.exact_memorisation(hits(greedy)) == memorised
    assert memorisation.extraction_strength(hits(greedy)) == strength


def test_truth_ratio() -> None:
    # p(right) = 1/2; wrong answers of 1/4 and 1/16: exp(-mean loss) = 1/8. R = 1/4.
    ratio = truth.truth_ratio(math.log(2), [math.log(4), math.log(16)])
    assert ratio == pytest.approx(0.25)
    assert truth.forget_truth(np.array([0.25, 1.0, 4.0])) == pytest.approx([0.25, 1.0, 0.25])
    assert truth.retain_truth(np.array([0.25, 1.0, 4.0])) == pytest.approx([0.75, 0.0, 0.0])
    assert truth.normalised_probability(0.5, [0.25, 0.25]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="expected at least one wrong answer"):
        truth.truth_ratio(1.0, [])


def test_forget_quality_is_the_p_value_of_the_ks_test() -> None:
    same = np.array([0.1, 0.2, 0.3, 0.4])
    assert truth.forget_quality(same, same) == 1.0
    # Two disjoint samples of 3: D = 1, and of the C(6, 3) = 20 orders 2 are as extreme. p = 2/20.
    assert truth.forget_quality(np.array([1.0, 2.0, 3.0]), np.array([7.0, 8.0, 9.0])) == pytest.approx(0.1)


def test_attacks_score_the_unseen_higher() -> None:
    logprobs = logs(0.5, 0.25, 0.125, 1.0, 1.0)
    # Loss: (1 + 2 + 3 + 0 + 0) ln 2 / 5.
    assert membership.zlib_score(logprobs, "text") == pytest.approx(1.2 * math.log(2) / len(zlib.compress(b"text")))
    # 40 % of 5 tokens are the 2 least likely: (2 + 3) / 2 ln 2.
    assert membership.min_k(logprobs) == pytest.approx(2.5 * math.log(2))
    assert membership.min_k(logs(0.5), k=0.1) == pytest.approx(math.log(2)), "at least one token"


def test_min_k_plus_plus_weighs_each_token_by_its_distribution() -> None:
    # (log p - mean) / deviation = (-2 - -1) / 0.5 = -2 and (-1 - -1) / 2 = 0; half of two tokens is the first.
    tokens = Tokens(np.array([-2.0, -1.0]), hits("++"), np.array([-1.0, -1.0]), np.array([0.5, 2.0]))
    assert membership.min_k_plus_plus(tokens, k=0.5) == pytest.approx(2.0)
    # A certain distribution has no spread; its variance is taken as 1e-6, as in open-unlearning.
    certain = Tokens(np.array([-1.0]), hits("+"), np.array([0.0]), np.array([0.0]))
    assert membership.min_k_plus_plus(certain) == pytest.approx(1000.0)
    assert membership.min_k_plus_plus(Tokens(np.array([-1.0]), hits("+"))) is None


def test_auc_and_privacy_leak() -> None:
    # Pairs (forgotten, unseen): 1<2, 1<3, 3>2 and 3=3: 2 + 1/2 of 4.
    assert membership.auc(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == pytest.approx(2.5 / 4)
    batched = membership.auc(np.array([[1.0, 3.0], [9.0, 9.0]]), np.array([[2.0, 3.0], [1.0, 1.0]]))
    assert batched == pytest.approx([2.5 / 4, 0.0])
    assert membership.privacy_leak(np.array(0.5)) == pytest.approx(0.0)
    assert membership.privacy_leak(np.array(1.0)) == pytest.approx(-1.0)
    assert membership.privacy_leak(np.array(0.7), 0.6) == pytest.approx((0.3 - 0.4) / 0.4)


def test_model_utility_is_the_harmonic_mean() -> None:
    assert model_utility(np.array([1.0, 0.5, 0.25])) == pytest.approx(3 / (1 + 2 + 4))
    assert model_utility(np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx([0.0, 0.5])


def test_the_end_of_the_turn_is_no_word_of_the_answer() -> None:
    tokens = Tokens(np.array([-1.0, -2.0]), hits("+-"), closed=True)
    assert tokens.words.logprobs.tolist() == [-1.0]
    assert Tokens(np.array([-1.0, -2.0]), hits("+-")).words.logprobs.tolist() == [-1.0, -2.0]
    assert Tokens(np.array([-1.0]), hits("+"), closed=True).words.logprobs.tolist() == [-1.0], "never empty"
