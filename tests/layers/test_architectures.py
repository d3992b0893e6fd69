"""Every supported architecture: the identity at first, exactly U(h) after, the same again after a round trip."""

from pathlib import Path

import pytest
import torch

from tests.layers.tiny import CONFIGS, hand_computed, logits, randomise, some_tokens, tiny
from unlearn_serve.layers import add_adapter, load_adapter, save_adapter, tensors_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_fresh_adapter_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    model, tokens = tiny(name, dtype=dtype), some_tokens()
    before = logits(model, tokens)
    peft_model = add_adapter(model, rank=4)
    assert torch.equal(logits(peft_model, tokens), before)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_does_exactly_what_the_equation_says(name: str, tmp_path: Path) -> None:
    tokens = some_tokens()
    plain = logits(tiny(name), tokens)
    model = add_adapter(tiny(name), rank=4, activation="gelu")
    randomise(tensors_of(model))
    got = logits(model, tokens)
    assert not torch.allclose(got, plain, atol=1e-3), "the layers must act at all"

    reference = tiny(name)
    with hand_computed(reference, tensors_of(model), "gelu"):
        # Same operations in the same order, up to how a linear layer and a plain product split their sums.
        torch.testing.assert_close(got, logits(reference, tokens), rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        assert torch.equal(logits(model, tokens), plain)

    save_adapter(model, tmp_path)
    assert torch.equal(logits(load_adapter(tiny(name), tmp_path), tokens), got)
