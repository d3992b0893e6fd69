"""What is kept of the frozen model: the same numbers as without keeping, whatever fits."""

from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from tests.training.toy import toy_model
from unlearn_serve.data import IGNORED, Encoded
from unlearn_serve.layers import add_adapter, tensors_of
from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.terms import token_log_probs

EXAMPLES = [
    Encoded([5, 6, 7, 8, 9, 10], [IGNORED] * 4 + [9, 10]),
    Encoded([5, 6, 11, 12], [IGNORED] * 3 + [12]),
    Encoded([5, 6, 7, 13, 14], [IGNORED] * 3 + [13, 14]),
]
PLENTY, NOTHING = 2**30, 0


def filled(cache_bytes: int, **options: object) -> FrozenOutputs:
    model = add_adapter(toy_model().eval(), rank=4, blocks=[2, 3])
    with torch.no_grad():
        for _, w_up in tensors_of(model).values():
            w_up.copy_(5 * torch.randn(w_up.shape, generator=torch.Generator().manual_seed(1)))
    outputs = FrozenOutputs(
        model, EXAMPLES, with_logits=range(3), first_block=2, row_tokens=64, cache_bytes=cache_bytes, **options
    )
    outputs.fill(model)
    outputs.model = model
    return outputs


def test_kept_and_recomputed_give_the_same() -> None:
    kept, recomputed = filled(PLENTY), filled(NOTHING)
    assert (kept.replays, kept.keeps_logits) == (True, True)
    assert (recomputed.replays, recomputed.keeps_logits) == (False, False)
    for members in ([0, 1, 2], [2, 0], [1]):
        (row,) = kept.rows(members)
        student = kept.student_logits(kept.model, row)
        teacher = kept.teacher_logits(kept.model, row)
        assert not torch.allclose(student, teacher, atol=1e-2), "the layers act on the student alone"
        torch.testing.assert_close(student, recomputed.student_logits(recomputed.model, row), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(teacher, recomputed.teacher_logits(recomputed.model, row), rtol=1e-4, atol=1e-5)
        plain = toy_model().eval()
        for n, member in enumerate(members):
            with torch.no_grad():
                logits = plain(input_ids=torch.tensor([EXAMPLES[member].input_ids])).logits[0, :-1]
            at = [t - 1 for t, label in enumerate(EXAMPLES[member].labels) if label != IGNORED]
            torch.testing.assert_close(teacher[row.owner == n], logits[at], rtol=1e-4, atol=1e-4)
            expected = token_log_probs(logits[at], row.labels[row.owner == n])
            got = kept.answers(row, teacher).teacher_log_probs[row.owner == n]
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_replaying_skips_the_lower_blocks_and_puts_them_back() -> None:
    outputs = filled(PLENTY)
    ran: list[int] = []
    blocks = outputs.model.base_model.model.model.layers
    for number, block in enumerate(blocks):
        block.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    (row,) = outputs.rows([0, 1])
    outputs.student_logits(outputs.model, row)
    assert ran == [2, 3], "the fast path must really run"
    ran.clear()
    outputs.model(input_ids=torch.tensor([[5, 6, 7]]))
    assert ran == [0, 1, 2, 3]


def test_gradients_are_those_of_an_ordinary_pass() -> None:
    gradients = []
    for cache_bytes in (PLENTY, NOTHING):
        outputs = filled(cache_bytes)
        (row,) = outputs.rows([0, 1, 2])
        token_log_probs(outputs.student_logits(outputs.model, row), row.labels).sum().backward()
        gradients.append([p.grad for p in outputs.model.parameters() if p.requires_grad])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_a_model_that_packing_does_not_suit_gets_a_row_each() -> None:
    """A sliding window shorter than an example: the packed row's own mask would let it look too far back."""
    config = MistralConfig(
        vocab_size=128,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=2,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    model = add_adapter(MistralForCausalLM(config).eval(), rank=4)
    outputs = FrozenOutputs(model, EXAMPLES, with_logits=range(3), first_block=0, row_tokens=64, cache_bytes=PLENTY)
    outputs.fill(model)
    rows = outputs.rows([0, 1, 2])
    assert [row.members for row in rows] == [(0,), (1,), (2,)]
    assert outputs.prefix == 0
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([EXAMPLES[0].input_ids])).logits[0, [3, 4]]
    torch.testing.assert_close(outputs.teacher_logits(model, rows[0]), expected, rtol=1e-4, atol=1e-4)


def test_a_first_answer_token_counts_with_all_its_spellings() -> None:
    spelt = torch.tensor([9, 20, 21])
    outputs = filled(PLENTY, beginnings={0: spelt})
    (row,) = outputs.rows([0, 1])
    logits = outputs.teacher_logits(outputs.model, row)
    got, plain = outputs.answers(row, logits).token_log_probs(), token_log_probs(logits, row.labels)
    torch.testing.assert_close(got[0], logits[0].softmax(-1)[spelt].sum().log())
    assert torch.equal(got[1:], plain[1:])


@pytest.mark.parametrize("cache_bytes", [PLENTY, NOTHING])
def test_log_probabilities_are_kept_in_any_case(cache_bytes: int, tmp_path: Path) -> None:
    outputs = filled(cache_bytes)
    (row,) = outputs.rows([0, 1, 2])
    answers = outputs.answers(row, outputs.teacher_logits(outputs.model, row))
    torch.testing.assert_close(answers.log_ratios(), torch.zeros(3), rtol=0, atol=1e-4)
