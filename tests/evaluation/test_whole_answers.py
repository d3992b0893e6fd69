"""Models that are no decoders, read as transformers alone has it: one row at a time, nothing kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data.tiny_tokenizer import byte_tokenizer
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from unlearn_serve.data import Example
from unlearn_serve.data.forms import encode_as, form_of
from unlearn_serve.errors import DataError
from unlearn_serve.evaluation import evaluate
from unlearn_serve.evaluation.opening import open_config, open_model, open_tokenizer, source_of
from unlearn_serve.evaluation.readings import Reading, probe_with
from unlearn_serve.evaluation.scores import score

CLASSES = {"toxic": 0, "non-toxic": 1, "unclear": 2}
PROMPTS = ("Is this good? ", "Is that good? ", "And what of this one? ", "Yes? ")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5; its defaults for generation are traps."""
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    special = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=259, initializer_factor=3.0, **shape, **special))
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=2.0, decoder_start_token_id=0, eos_token_id=2
    )
    return saved(model, tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    names = {number: name for name, number in CLASSES.items()}
    config = LlamaConfig(
        vocab_size=259, pad_token_id=0, id2label=names, label2id=CLASSES, initializer_range=0.3, **shape
    )
    return saved(LlamaForSequenceClassification(config), tmp_path_factory.mktemp("classifier"))


def saved(model: torch.nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def read(folder: Path, examples: list[Example], batch_size: int) -> list[Reading]:
    config, tokenizer = open_config(folder), open_tokenizer(folder)
    form = form_of(config)
    probes = [probe_with(one, lambda row: encode_as(form, row, tokenizer, 200, config)) for one in examples]
    source = source_of(form, open_model(folder, form, dtype="auto", device="cpu"), tokenizer, batch_size=batch_size)
    return source.read(probes, max_new_tokens=6)


@pytest.mark.parametrize("batch_size", [1, 3])
@torch.no_grad()
def test_an_encoder_decoder_is_read_as_it_computes(t5: Path, batch_size: int) -> None:
    model, tokenizer = T5ForConditionalGeneration.from_pretrained(t5), byte_tokenizer()
    wrong = ("No", "Certainly not, never")
    examples = [Example(prompt=p, completion="Yes", answer="Yes", perturbed_answers=wrong) for p in PROMPTS]
    for example, reading in zip(examples, read(t5, examples, batch_size), strict=True):
        prompt = torch.tensor([tokenizer(example.prompt).input_ids])
        for answer, tokens in zip(("Yes", *wrong), reading.answers, strict=True):
            labels = torch.tensor([[*tokenizer(answer).input_ids, 2]])
            logp = model(input_ids=prompt, labels=labels).logits[0].log_softmax(-1)
            expected = logp[torch.arange(labels.shape[1]), labels[0]]
            np.testing.assert_allclose(tokens.logprobs, expected, rtol=1e-4, atol=1e-4)
            assert tokens.greedy.tolist() == (logp.argmax(-1) == labels[0]).tolist()
            np.testing.assert_allclose(tokens.mean, (logp.exp() * logp).sum(-1), atol=1e-3)
            assert tokens.closed
        said = [0]
        while len(said) < 7 and said[-1] != 2:
            logits = model(input_ids=prompt, decoder_input_ids=torch.tensor([said])).logits
            said.append(int(logits[0, -1].argmax()))
        assert reading.text == tokenizer.decode(said[1:], skip_special_tokens=True).strip()
    assert len({reading.text for reading in read(t5, examples, batch_size)}) > 1, "answers depend on what is asked"


@pytest.mark.parametrize("pad", [0, None])
@pytest.mark.parametrize("batch_size", [1, 3])
@torch.no_grad()
def test_a_head_is_read_as_it_computes(classifier: Path, tmp_path: Path, batch_size: int, pad: int | None) -> None:
    """Also one that names no padding token, whose rows transformers takes one at a time."""
    model, tokenizer = LlamaForSequenceClassification.from_pretrained(classifier), byte_tokenizer()
    model.config.pad_token_id = pad
    classifier = saved(model, tmp_path)
    examples = [Example(prompt=p, completion="toxic", answer="toxic", perturbed_answers=("unclear",)) for p in PROMPTS]
    for example, reading in zip(examples, read(classifier, examples, batch_size), strict=True):
        logp = model(input_ids=torch.tensor([tokenizer(example.prompt).input_ids])).logits[0].log_softmax(-1)
        right, wrong = reading.answers
        assert right.logprobs == pytest.approx([logp[0].item()], abs=1e-4)
        assert wrong.logprobs == pytest.approx([logp[2].item()], abs=1e-4)
        assert right.greedy.tolist() == [logp.argmax().item() == 0]
        assert reading.text == list(CLASSES)[logp.argmax()]


def test_a_class_is_right_or_wrong_whatever_its_name_contains(classifier: Path) -> None:
    example = Example(prompt="Is this good? ", completion="toxic", answer="toxic")
    (reading,) = read(classifier, [example], 1)
    for said in CLASSES:
        found = score(example, Reading(said, reading.answers, is_class=True))
        assert found.correct is found.exact_match is (said == "toxic")
        assert found.rouge1 == found.rouge_l == (said == "toxic")


def test_rows_that_do_not_fit(t5: Path, classifier: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    for folder, row, message in (
        (t5, {"text": "This is good."}, "expected a prompt and a completion, got running text"),
        (classifier, {"prompt": "Good? ", "completion": "fine"}, r"classes \('toxic', 'non-toxic', 'unclear'\), got"),
        (classifier, {"prompt": "Good? " * 400, "completion": "toxic"}, "expected at most 2048 tokens, got 2400"),
    ):
        rows.write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError, match=f"rows.jsonl:1: .*{message}"):
            evaluate(folder, None, {"forget": rows}, device="cpu")
