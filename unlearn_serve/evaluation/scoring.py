"""Ask a model: greedy answers and the probability of the gold answers, in batches padded on the left."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from unlearn_serve.data import IGNORED, Encoded, Example, collate_left, encode, prompt_ids
from unlearn_serve.evaluation.metrics import accuracy, contains_gold, probability, token_logprobs
from unlearn_serve.format import Score

PASSES = 2
"""How often scoring goes over each example: once to generate, once for the gold answer's probability."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one example.

    Attributes:
        text: its greedy answer, without special tokens.
        correct: the gold string occurs in it.
        probability: of the gold answer, exp(mean log p of its tokens).
    """

    text: str
    correct: bool
    probability: float


def score_examples(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int,
    max_length: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Answer]:
    """Answer every example greedily and score it, in the examples' order.

    Args:
        model: a causal language model in evaluation mode, with or without adapters; not changed.
        tokenizer: the model's.
        examples: what to ask.
        max_new_tokens: longest answer to generate.
        batch_size: rows in one pass.
        max_length: most tokens of prompt and gold answer together.
        advance: told how many examples were done, `PASSES` times for each.

    Raises:
        DataError: an example cannot be encoded.
    """
    pad_id = _pad_id(tokenizer)
    encoded = [encode(example, tokenizer, max_length) for example in examples]
    prompts = [_as_prompt(prompt_ids(example, tokenizer)) for example in examples]
    greedy = _greedy(model, tokenizer, max_new_tokens, pad_id)
    texts = [""] * len(examples)
    for rows in _batches(prompts, batch_size):
        batch = _to_device(collate_left([prompts[row] for row in rows], pad_id), model.device)
        with torch.inference_mode():
            out = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=greedy
            )
        generated = out[:, batch["input_ids"].shape[1] :]
        for row, text in zip(rows, tokenizer.batch_decode(generated, skip_special_tokens=True), strict=True):
            texts[row] = text.strip()
        advance(len(rows))
    chances = [0.0] * len(examples)
    for rows in _batches(encoded, batch_size):
        for row, chance in zip(rows, _probabilities(model, [encoded[row] for row in rows], pad_id), strict=True):
            chances[row] = chance
        advance(len(rows))
    return [
        Answer(text=text, correct=contains_gold(text, example.answer), probability=chance)
        for text, example, chance in zip(texts, examples, chances, strict=True)
    ]


def summarise(answers: Sequence[Answer]) -> Score:
    """Means over a set's answers.

    Raises:
        ValueError: no answers.
    """
    return Score(
        accuracy=accuracy([answer.correct for answer in answers]),
        probability=sum(answer.probability for answer in answers) / len(answers),
        samples=len(answers),
    )


@torch.inference_mode()
def _probabilities(model: Any, batch: Sequence[Encoded], pad_id: int) -> list[float]:
    inputs = _to_device(collate_left(batch, pad_id), model.device)
    labels = inputs.pop("labels")
    # Rows end together, so the answers lie in the last columns: no logits for the prompts before them.
    answer_columns = (labels != IGNORED).any(0)
    keep = int(labels.shape[1] - answer_columns.int().argmax().item()) + 1
    logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits
    return [probability(row) for row in token_logprobs(logits, labels[:, -logits.shape[1] :])]


def _greedy(model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, pad_id: int) -> GenerationConfig:
    """Plain greedy search: no sampling and no penalties, whatever the checkpoint's own defaults are."""
    own: GenerationConfig = model.generation_config
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        # generate() fills whatever is left out from the checkpoint's own defaults.
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id,
        pad_token_id=pad_id,
    )


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0  # masked everywhere, so any token will do


def _as_prompt(ids: list[int]) -> Encoded:
    return Encoded(ids, [IGNORED] * len(ids))


def _batches(encoded: Sequence[Encoded], size: int) -> Iterator[list[int]]:
    """Rows of similar length together: padding costs as much as tokens do."""
    order = sorted(range(len(encoded)), key=lambda row: (len(encoded[row].input_ids), row))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
