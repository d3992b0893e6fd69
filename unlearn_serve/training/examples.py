"""From data sets to training examples: which tokens are to be forgotten, which to be retained."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedTokenizerBase

from unlearn_serve.data import IGNORED, Encoded, Example, encode
from unlearn_serve.errors import DataError
from unlearn_serve.training.answers import encode_gold
from unlearn_serve.training.spellings import Spellings


@dataclass(frozen=True)
class TrainingSet:
    """All that training reads; `forget` and `retain` are indices into `encoded`, in this order, then others."""

    encoded: list[Encoded]
    forget: range
    retain: range
    beginnings: dict[int, torch.Tensor]
    """By forgotten example, the tokens that begin its gold string; none where a whole answer is forgotten."""

    refusals: dict[int, int]
    """By forgotten example, the one that answers its prompt with a refusal; empty where none was asked for."""

    texts: dict[int, int] = field(default_factory=dict)
    """By forgotten example, the same row as running text (`texts.with_texts`); empty where none was asked for."""

    rows: dict[int, str] = field(default_factory=dict)
    """By example that holds nothing but a retained row, that row's `row_id`: what the frozen model makes of it may
    outlive the request. Of no row that is forgotten as well."""


@dataclass
class _Collected:
    """Examples by their tokens and labels, so that equal ones count once."""

    forget: dict[tuple[int | None, ...], tuple[Encoded, torch.Tensor | None]] = field(default_factory=dict)
    retain: dict[tuple[int | None, ...], Encoded] = field(default_factory=dict)
    refusals: dict[tuple[int | None, ...], Encoded] = field(default_factory=dict)
    """By the key of the forgotten example."""

    rows: dict[tuple[int | None, ...], str] = field(default_factory=dict)
    """By the key of an example of a retained row."""


def build_training_set(
    forget: Sequence[Example],
    retain: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    gold_only: bool,
    said: Callable[[Sequence[Example]], Sequence[Example]] = lambda _: (),
    said_tokens: int = 0,
    refusal: str | None = None,
) -> TrainingSet:
    """Encode the data sets, and after each the frozen model's own answers to its prompts.

    With `gold_only`, an answer that contains its row's gold string, and more, is split: a forgotten one into the gold
    string, forgotten, and the words before it, retained; a retained one counts as a whole and once more by its gold
    string, since those few tokens among many carry the knowledge.

    Args:
        forget: what is to be forgotten.
        retain: what is to stay.
        tokenizer: the model's.
        max_length: tokens that a row may have.
        gold_only: see above.
        said: returns examples with the model's own answers as completions; of forgotten ones only those that contain
            the gold string are used.
        said_tokens: by how many tokens such an answer may make an example longer than `max_length`.
        refusal: what to answer to forgotten prompts instead, for `idk`.

    Raises:
        DataError: see `unlearn_serve.data.encode`; or a refusal is asked for and a forgotten row has no prompt.
    """
    spellings = Spellings(tokenizer)
    found = _Collected()

    def add_refusal(example: Example, key: tuple[int | None, ...], room: int) -> None:
        if refusal is None:
            return
        if example.prompt is None:
            raise DataError(f"{example.source}: expected a prompt to refuse, got running text; write it as a question")
        refused = replace(example, completion=refusal, answer=refusal.strip())
        found.refusals[key] = encode(refused, tokenizer, room + said_tokens)

    def add_forgotten(example: Example, room: int, *, only_with_gold: bool) -> None:
        parts = encode_gold(example, tokenizer, room)
        if parts is not None and gold_only and _says_more(example):
            gold, before = parts
            first = next(label for label in gold.labels if label != IGNORED)
            add_refusal(example, _key(gold), room)
            found.forget[_key(gold)] = gold, spellings.beginnings(example.answer, first)
            if before is not None:
                found.retain[_key(before)] = before
        elif parts is not None or not only_with_gold:
            whole = encode(example, tokenizer, room)
            add_refusal(example, _key(whole), room)
            found.forget[_key(whole)] = whole, None

    def add_retained(example: Example, room: int) -> None:
        whole, parts = encode(example, tokenizer, room), encode_gold(example, tokenizer, room)
        for one in [whole, parts[0]] if parts is not None and gold_only and _says_more(example) else [whole]:
            found.retain[_key(one)] = one
            found.rows[_key(one)] = row_id(example)

    for example in forget:
        add_forgotten(example, max_length, only_with_gold=False)
    for example in said(forget):
        add_forgotten(example, max_length + said_tokens, only_with_gold=True)
    for example in retain:
        add_retained(example, max_length)
    for example in said(retain):
        add_retained(example, max_length + said_tokens)

    # What is to be forgotten is not retained as well, even where both files hold it.
    retained = {key: one for key, one in found.retain.items() if key not in found.forget}
    forgotten = list(found.forget.values())
    gone = {row_id(example) for example in forget}
    first_refusal = len(forgotten) + len(retained)
    return TrainingSet(
        encoded=[
            *(one for one, _ in forgotten),
            *retained.values(),
            *(found.refusals[key] for key in found.forget if refusal),
        ],
        forget=range(len(forgotten)),
        retain=range(len(forgotten), len(forgotten) + len(retained)),
        beginnings={i: tokens for i, (_, tokens) in enumerate(forgotten) if tokens is not None},
        refusals={i: first_refusal + i for i in range(len(found.refusals))},
        rows={
            len(forgotten) + n: row
            for n, key in enumerate(retained)
            if (row := found.rows.get(key)) is not None and row not in gone
        },
    )


def row_id(example: Example) -> str:
    """Return what a row is known by, whatever its answer: a digest of its prompt, or of all of a running text."""
    prompt = example.prompt
    turns = prompt if prompt is None or isinstance(prompt, str) else [[turn.role, turn.content] for turn in prompt]
    said = json.dumps([turns, example.completion if prompt is None else None])
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def _says_more(example: Example) -> bool:
    return example.answer != example.completion.strip()


def _key(example: Encoded) -> tuple[int | None, ...]:
    return (*example.input_ids, None, *example.labels)
