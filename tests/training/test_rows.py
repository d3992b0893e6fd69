"""Packing: structure for any examples, and the model's word that packed equals alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.toy import toy_model
from unlearn_serve.data import IGNORED, Encoded
from unlearn_serve.training.rows import common_prefix_length, pack_row, pack_rows


def example(prompt: list[int], answer: list[int]) -> Encoded:
    return Encoded(prompt + answer, [IGNORED] * len(prompt) + answer)


TOKENS = st.lists(st.integers(3, 9), min_size=1, max_size=6)
EXAMPLES = st.lists(st.builds(example, TOKENS, TOKENS), min_size=1, max_size=6)


def test_the_worked_example() -> None:
    examples = [example([5, 6, 7], [8, 9]), example([5, 6], [4, 3])]
    assert common_prefix_length(examples) == 2
    row = pack_row(examples, [0, 1], 2)
    assert row.input_ids.tolist() == [[5, 6, 7, 8, 9, 4, 3]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert row.segment.tolist() == [0, 0, 1, 1, 1, 2, 2]
    # 8 is predicted at 7, 9 at 8; 4 at the prefix's last token, 3 at 4
    assert row.predictors.tolist() == [2, 3, 1, 5]
    assert row.labels.tolist() == [8, 9, 4, 3]
    assert row.owner.tolist() == [0, 0, 1, 1]
    seen = (row.attention_mask(torch.float32)[0, 0] == 0).int().tolist()
    assert seen[4] == [1, 1, 1, 1, 1, 0, 0]
    assert seen[5] == [1, 1, 0, 0, 0, 1, 0]


@given(EXAMPLES, st.integers(1, 40))
def test_rows_hold_every_example_once_in_order(examples: list[Encoded], row_tokens: int) -> None:
    prefix = common_prefix_length(examples)
    rows = pack_rows(examples, range(len(examples)), prefix, row_tokens)
    assert [member for row in rows for member in row.members] == list(range(len(examples)))
    for row in rows:
        length = row.input_ids.shape[1]
        assert length <= row_tokens or len(row.members) == 1
        for n, member in enumerate(row.members):
            own = row.input_ids[0][(row.segment == n + 1) | (row.segment == 0)]
            assert own.tolist() == examples[member].input_ids
            assert row.labels[row.owner == n].tolist() == [t for t in examples[member].labels if t != IGNORED]


@given(EXAMPLES)
def test_packed_equals_alone(examples: list[Encoded]) -> None:
    model = toy_model(blocks=2).eval()
    row = pack_row(examples, range(len(examples)), common_prefix_length(examples))
    with torch.no_grad():
        packed = model(
            input_ids=row.input_ids,
            position_ids=row.position_ids,
            attention_mask=row.attention_mask(torch.float32),
            logits_to_keep=row.predictors,
            use_cache=False,
        ).logits[0]
        for n, one in enumerate(examples):
            alone = model(input_ids=torch.tensor([one.input_ids]), use_cache=False).logits[0]
            at = [t - 1 for t, label in enumerate(one.labels) if label != IGNORED]
            torch.testing.assert_close(packed[row.owner == n], alone[at], rtol=1e-4, atol=1e-4)
