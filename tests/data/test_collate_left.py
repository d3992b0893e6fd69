import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_serve.data import IGNORED, Encoded, collate_left


def test_by_hand() -> None:
    batch = collate_left([Encoded([5, 6, 7], [-100, 6, 7]), Encoded([8], [8])], pad_id=0)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [0, 0, 8]],
        "attention_mask": [[1, 1, 1], [0, 0, 1]],
        "position_ids": [[0, 1, 2], [0, 0, 0]],
        "labels": [[-100, 6, 7], [-100, -100, 8]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=5))
def test_unpadding_gives_the_rows_back(rows: list[list[int]]) -> None:
    batch = collate_left([Encoded(row, [IGNORED, *row[1:]]) for row in rows], pad_id=0)
    for i, row in enumerate(rows):
        real = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i][real].tolist() == row
        assert batch["position_ids"][i][real].tolist() == list(range(len(row)))
        assert batch["labels"][i][real].tolist() == [IGNORED, *row[1:]]
        assert (batch["labels"][i][~real] == IGNORED).all()
