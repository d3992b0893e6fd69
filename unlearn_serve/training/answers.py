"""The model's own answers: what it says to the prompts at hand before anything is unlearned.

A data set's answer ("Paris.") is rarely what the model says word for word ("The capital of France is Paris."), and it
is what the model says that must go or stay. Generated once, greedily, by the frozen model.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn_serve.data import IGNORED, Encoded, Example, collate_left, encode, prompt_ids

_BATCH = 32


def own_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Example]:
    """Return each prompted example with what `model` answers to its prompt as completion; the gold string stays.

    Plain text has no prompt and is left out, and so is an empty answer. An answer that the limit cuts short is kept.

    Args:
        model: the frozen model, or a PEFT model with its adapters disabled.
        tokenizer: the model's.
        examples: prompts to answer; equal prompts are answered once, for the first that has it.
        max_new_tokens: length of an answer at most.
        advance: called with the number of prompts done, for a progress bar.
    """
    prompts: dict[tuple[int, ...], Example] = {}
    for example in examples:
        if example.prompt is not None:
            prompts.setdefault(tuple(prompt_ids(example, tokenizer)), example)
    # Prompts of like length together: little padding, so little wasted work.
    order = sorted(prompts, key=len)
    completions: dict[tuple[int, ...], str] = {}
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        texts = _generate(model, tokenizer, batch, max_new_tokens)
        completions.update(zip(batch, texts, strict=True))
        advance(len(batch))
    return [
        replace(example, completion=completions[prompt]) for prompt, example in prompts.items() if completions[prompt]
    ]


@torch.no_grad()
def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[tuple[int, ...]], max_new_tokens: int
) -> list[str]:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    batch = collate_left([Encoded(list(p), list(p)) for p in prompts], 0 if pad is None else pad)
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def encode_gold(
    example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Encoded, Encoded | None] | None:
    """Split an answer at its gold string: what is to be forgotten, and the words before it, which are to stay.

    Returns:
        Token ids up to the end of the gold string's first occurrence, labelled on that string; and token ids up to its
        beginning, labelled on the words before it (None where it comes first). None where the answer does not contain
        the gold string, whatever the case.

    Raises:
        DataError: see `encode`.
    """
    whole = encode(example, tokenizer, max_length)
    start = len(whole.prompt)
    answer = whole.input_ids[start:]
    gold = example.answer.casefold()

    def says(first: int, last: int) -> bool:
        return gold in tokenizer.decode(answer[first:last]).casefold()

    if not says(0, len(answer)):
        return None
    last = next(i for i in range(1, len(answer) + 1) if says(0, i))
    first = next(i for i in reversed(range(last)) if says(i, last))
    ids = whole.input_ids
    gold_only = Encoded(ids[: start + last], [IGNORED] * (start + first) + ids[start + first : start + last])
    before = Encoded(ids[: start + first], whole.labels[: start + first]) if first else None
    return gold_only, before
