"""A batch's losses are those of its rows alone, as transformers itself has them; and rows survive the way to a file."""

from pathlib import Path

import pytest
import torch

from benchmarks.paper.baselines.rows import aligned_logits, collate, encode_rows, row_losses, write_rows
from benchmarks.paper.task import Kind
from tests.paper.baselines.tasks import GOOD, MODELS, encoded, rows
from tests.training.test_forms import CLASSES
from tests.training.toy import toy_tokenizer
from unlearn_serve.data import Example, Message, read_examples
from unlearn_serve.errors import DataError


@pytest.mark.parametrize("kind", ["decoder", "seq2seq", "classes"])
@torch.no_grad()
def test_padding_and_alignment_leave_each_rows_loss(kind: Kind) -> None:
    """Catches labels off by one, padding that is attended to or counted, and a head that reads a padding token."""
    model = MODELS[kind]().eval()
    batch = collate(encoded(kind), kind, pad_id=0)
    got = row_losses(aligned_logits(model(**batch["inputs"]).logits, kind), batch["labels"])
    expected = []
    for one in encoded(kind):
        ids, labels = one.encoded.input_ids, one.encoded.labels
        prompt = torch.tensor([ids[: -one.encoded.answer_tokens]])
        if kind == "decoder":
            out = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
        else:
            out = model(input_ids=prompt, labels=torch.tensor([ids[-one.encoded.answer_tokens :]]))
        expected.append(out.loss)
    assert len({len(one.encoded.input_ids) for one in encoded(kind)}) > 1, "rows of one length would prove nothing"
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_a_row_that_no_kind_can_learn_is_refused() -> None:
    row = Example(prompt="Is Ham good? ", completion="splendid", answer="splendid", source="rows.jsonl:7")
    with pytest.raises(DataError, match=r"rows.jsonl:7: expected one of 'bad', 'good', got 'splendid'"):
        encode_rows([row], toy_tokenizer(), kind="classes", max_length=64, classes=CLASSES)
    with pytest.raises(DataError, match="expected at most 4 tokens"):
        encode_rows(rows(GOOD, "classes"), toy_tokenizer(), kind="classes", max_length=4, classes=CLASSES)
    text = Example(prompt=None, completion="Ham.", answer="Ham.")
    with pytest.raises(DataError, match="expected a prompt and a completion, got running text"):
        encode_rows([text], toy_tokenizer(), kind="seq2seq", max_length=64, classes={})


def test_rows_are_the_same_after_a_file(tmp_path: Path) -> None:
    given = [
        Example(prompt=(Message(role="user", content="Who?"),), completion="It was Bill.", answer="Bill"),
        Example(prompt="Who? ", completion="Bill", answer="Bill", paraphrased_answer="B.", perturbed_answers=("Al",)),
        Example(prompt=None, completion="Bill wrote it.", answer="Bill wrote it."),
    ]
    found = read_examples(write_rows(tmp_path / "rows.jsonl", given))
    for before, after in zip(given, found, strict=True):
        for name in ("prompt", "completion", "answer", "paraphrased_answer", "perturbed_answers"):
            assert getattr(after, name) == getattr(before, name)
