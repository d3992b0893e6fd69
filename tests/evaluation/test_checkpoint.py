"""One batched pass against a loop that does one example, one token at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.tiny_tokenizer import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from unlearn_serve.data import Example, Message
from unlearn_serve.errors import UnsupportedModel
from unlearn_serve.evaluation.checkpoint import Checkpoint
from unlearn_serve.evaluation.readings import Probe, Reading, probe

NEW = 12
TOKENIZER = byte_tokenizer()


def chat(question: str, answer: str, *wrong: str) -> Example:
    turns = (Message(role="user", content=question),)
    return Example(prompt=turns, completion=answer, answer=answer, perturbed_answers=wrong)


CHATS = [
    chat("Who wrote it?", "Ada", "Bob", "Charles, I believe"),
    chat("?", "Somebody whose name is long enough to be padded against"),
    chat("A question that goes on for a good while longer than the others do, to pad them all?", "b", "c"),
]
MIXED = [
    *CHATS,
    Example(prompt="Q: where? A:", completion=" Here", answer="Here"),
    Example(prompt=None, completion="Running text.", answer="text"),
]


def probes(examples: Sequence[Example]) -> list[Probe]:
    return [probe(example, TOKENIZER, 500) for example in examples]


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).eval()


def greedy_by_hand(model: Any, prompt: Sequence[int], limit: int = NEW) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + limit and (len(ids) == len(prompt) or ids[-1] != 2):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[len(prompt) :]


@torch.no_grad()
def assert_read_right(model: Any, asked: Sequence[Probe], readings: Sequence[Reading]) -> None:
    for one, reading in zip(asked, readings, strict=True):
        said = TOKENIZER.decode(greedy_by_hand(model, one.prompt), skip_special_tokens=True).strip()
        assert reading.text == said
        for answer, tokens in zip(one.answers, reading.answers, strict=True):
            logits = model(torch.tensor([[*one.prompt, *answer]])).logits[0]
            logp = logits.double().log_softmax(-1)[len(one.prompt) - 1 : -1]
            expected = logp.gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)
            # fp32 sums in another order: 1e-4 nats leaves room for a few dozen tokens.
            np.testing.assert_allclose(tokens.logprobs, expected, atol=1e-4)
            mean = (logp.exp() * logp).sum(-1)
            deviation = ((logp.exp() * logp.square()).sum(-1) - mean.square()).sqrt()
            np.testing.assert_allclose(tokens.mean, mean, atol=1e-4)
            np.testing.assert_allclose(tokens.deviation, deviation, atol=1e-3)
            assert tokens.greedy.tolist() == (logp.argmax(-1) == torch.tensor(answer)).tolist()


@pytest.mark.parametrize("examples", [CHATS, MIXED, CHATS[:1]], ids=["shared beginning", "nothing shared", "one"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batched_is_one_at_a_time(model: Any, examples: Sequence[Example], batch_size: int) -> None:
    """Padding, order, positions, end of answers, and none of the checkpoint's own sampling or penalties."""
    asked = probes(examples)
    readings = Checkpoint(model, TOKENIZER, batch_size=batch_size).read(asked, max_new_tokens=NEW)
    assert_read_right(model, asked, readings)
    if len(examples) == len(MIXED):
        assert len({reading.text for reading in readings}) > 2, "answers that are all alike would show nothing"


@pytest.mark.parametrize("known", [3, 7, NEW, NEW + 2])
def test_greedy_goes_on_from_what_is_memorised(model: Any, known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gold answers that are greedy for a while, to the limit, or beyond: and the steps they save are really saved."""
    prompts = [one.prompt for one in probes(CHATS)]
    said = [greedy_by_hand(model, prompt, known) for prompt in prompts]
    wrong = [(tokens[-1] + 1) % 200 + 3 for tokens in said]
    asked = [
        Probe(prompt, ((*tokens[:known], other),), (False,))
        for prompt, tokens, other in zip(prompts, said, wrong, strict=True)
    ]
    steps = []
    forward = Checkpoint._forward
    monkeypatch.setattr(
        Checkpoint, "_forward", lambda self, rows, *a, **k: (steps.append(rows), forward(self, rows, *a, **k))[1]
    )
    readings = Checkpoint(model, TOKENIZER, batch_size=16).read(asked, max_new_tokens=NEW)
    assert_read_right(model, asked, readings)
    generated = [rows for rows in steps if max(map(len, rows)) == 1]
    # The first token that differs is known from the pass over the gold answer, so it costs no step either.
    assert len(generated) == max(0, NEW - known - 1)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mistral", {"sliding_window": 8}),
        ("gemma3_text", {"sliding_window": 8, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    ],
)
def test_other_positions_and_windows(family: str, options: dict[str, Any]) -> None:
    """Windows count real tokens only, and learned positions begin at the first real one."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        family,
        **{**sizes, "num_key_value_heads": 1, "vocab_size": len(TOKENIZER), "initializer_range": 0.3, **options},
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=2)
    asked = probes(MIXED)
    assert_read_right(model, asked, Checkpoint(model, TOKENIZER, batch_size=3).read(asked, max_new_tokens=NEW))


def test_a_model_whose_state_cannot_be_forked_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.config, "layer_types", ["linear_attention"], raising=False)
    with pytest.raises(UnsupportedModel, match="full or sliding attention, got linear_attention"):
        Checkpoint(model, TOKENIZER, batch_size=1)


def test_progress_counts_every_probe_once(model: Any) -> None:
    done: list[int] = []
    Checkpoint(model, TOKENIZER, batch_size=2).read(probes(MIXED), max_new_tokens=2, advance=done.append)
    assert sum(done) == len(MIXED)
