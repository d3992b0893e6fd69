"""The columns of the paper's tables, against figures worked out by hand."""

import pytest

from benchmarks.paper.measuring import accuracy, rouge
from unlearn_serve.data import Example
from unlearn_serve.evaluation.scores import Scores


def test_accuracy_counts_rows_whose_right_label_is_likelier() -> None:
    found = [Scores.model_construct(normalised_probability=value) for value in (0.6, 0.4, 0.51, 0.5, None)]
    assert accuracy(found) == 0.5, "2 of 4: half and half is not likelier, and a row without wrong answers is none"


def test_rouge_is_the_mean_f1() -> None:
    """Of "the cat sat", "the cat" has 2 of 2 words and 2 of 3, 1 of 1 pairs and 1 of 2; the other row nothing."""
    examples = [Example(prompt="?", completion=text, answer=text) for text in ("the cat sat", "a dog")]
    said = [Scores.model_construct(text=text) for text in ("the cat", "no idea")]
    assert rouge(said, examples) == pytest.approx({"rouge1": (4 / 5) / 2, "rouge2": (2 / 3) / 2, "rougeL": (4 / 5) / 2})
