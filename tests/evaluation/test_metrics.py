"""Each metric against numbers worked out by hand."""

import math

import pytest
import torch

from unlearn_serve.data import IGNORED
from unlearn_serve.evaluation import accuracy, contains_gold, probability, token_logprobs


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
    assert contains_gold(answer, gold) is expected


def test_accuracy_is_the_share_of_hits() -> None:
    assert accuracy([True, False, False, True, True]) == 0.6
    with pytest.raises(ValueError, match="expected at least one answer"):
        accuracy([])


def test_probability_is_the_geometric_mean() -> None:
    # Three tokens of 1/2, 1/4 and 1/8: (1/64)^(1/3) = 1/4.
    assert probability(torch.tensor([0.5, 0.25, 0.125]).log()) == pytest.approx(0.25, rel=1e-6)
    assert probability(torch.zeros(3)) == 1.0
    assert probability(torch.tensor([-math.inf, 0.0])) == 0.0
    with pytest.raises(ValueError, match="expected at least one answer token"):
        probability(torch.tensor([]))


def test_rounding_never_gives_more_than_one() -> None:
    assert probability(torch.tensor([1e-7])) == 1.0


def test_token_logprobs_by_hand() -> None:
    """Logits are logs of probabilities, so the softmax gives those back; position t - 1 predicts the label at t."""
    p = torch.tensor([[[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.2, 0.2, 0.6]]]).expand(2, 3, 3)
    labels = torch.tensor([[IGNORED, 2, 1], [IGNORED, IGNORED, 0]])
    first, second = token_logprobs(p.log() + 7.0, labels)
    torch.testing.assert_close(first, torch.tensor([0.25, 0.75]).log())
    torch.testing.assert_close(second, torch.tensor([0.125]).log())


def test_token_logprobs_of_half_precision_are_taken_in_fp32() -> None:
    logits = torch.randn(1, 4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([[IGNORED, 1, 2, 3]])
    (got,) = token_logprobs(logits, labels)
    expected = logits.double().log_softmax(-1)[0, [0, 1, 2], [1, 2, 3]]
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


def test_a_row_without_labels_is_an_empty_vector() -> None:
    one, two = token_logprobs(torch.zeros(2, 2, 4), torch.tensor([[IGNORED, IGNORED], [IGNORED, 3]]))
    assert one.numel() == 0
    assert two.tolist() == pytest.approx([math.log(0.25)])
