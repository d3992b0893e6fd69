"""Rows of the task as batches for transformers, of any kind of model; and as the JSONL files that the product reads."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from benchmarks.paper.task import Kind
from unlearn_serve.data import IGNORED, Encoded, Example, collate_left, encode, prompt_ids
from unlearn_serve.errors import DataError


@dataclass(frozen=True)
class Weighted:
    """A row as tokens, and what its loss counts: 1 to learn it, -1 to climb away from it."""

    encoded: Encoded
    """For a classifier the one label is the class's number, and stands behind the prompt."""

    weight: float = 1.0


def encode_rows(
    rows: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: Kind,
    max_length: int,
    classes: dict[str, int],
    weight: float = 1.0,
) -> list[Weighted]:
    """Encode rows; `classes` are a classifier's `label2id`.

    Raises:
        DataError: a row is too long, has no prompt where the kind needs one, or names no class.
    """
    return [Weighted(_encode(row, tokenizer, kind, max_length, classes), weight) for row in rows]


def _encode(
    row: Example, tokenizer: PreTrainedTokenizerBase, kind: Kind, max_length: int, classes: dict[str, int]
) -> Encoded:
    if kind != "decoder" and row.prompt is None:
        raise DataError(f"{row.source}: expected a prompt and a completion, got running text")
    if kind != "classes":
        return encode(row, tokenizer, max_length)
    label = row.completion.strip()
    if label not in classes:
        raise DataError(f"{row.source}: expected one of {', '.join(map(repr, classes))}, got {label[:60]!r}")
    prompt = prompt_ids(row, tokenizer)
    if len(prompt) > max_length:
        raise DataError(f"{row.source}: expected at most {max_length} tokens, got {len(prompt)}; raise max_length")
    return Encoded([*prompt, classes[label]], [IGNORED] * len(prompt) + [classes[label]])


def collate(batch: Sequence[Weighted], kind: Kind, pad_id: int) -> dict[str, Any]:
    """Stack rows: `inputs` for the model, `labels` and `weights` [B] for `row_losses`.

    A decoder's rows end flush right, so that the last columns hold all answers, and only those get logits. labels:
    decoder and seq2seq [B, A] aligned with the logits [B, A, V] (`IGNORED` where there is none), classes [B].
    """
    encoded = [one.encoded for one in batch]
    weights = torch.tensor([one.weight for one in batch])
    if kind == "decoder":
        found = collate_left(encoded, pad_id)
        labels = found.pop("labels")
        answers = max(one.answer_tokens for one in encoded)
        return {"inputs": {**found, "logits_to_keep": answers + 1}, "labels": labels[:, -answers:], "weights": weights}
    prompts = [one.input_ids[: -one.answer_tokens] for one in encoded]
    if kind == "classes":
        inputs = collate_left([Encoded(ids, [IGNORED] * len(ids)) for ids in prompts], pad_id)
        del inputs["labels"]
        return {"inputs": inputs, "labels": torch.tensor([one.labels[-1] for one in encoded]), "weights": weights}
    answers_ = [torch.tensor(one.input_ids[-one.answer_tokens :]) for one in encoded]
    ids = pad_sequence([torch.tensor(one) for one in prompts], batch_first=True, padding_value=pad_id)
    mask = pad_sequence([torch.ones(len(one), dtype=torch.int64) for one in prompts], batch_first=True)
    labels = pad_sequence(answers_, batch_first=True, padding_value=IGNORED)
    return {
        "inputs": {"input_ids": ids, "attention_mask": mask, "labels": labels},
        "labels": labels,
        "weights": weights,
    }


def aligned_logits(logits: torch.Tensor, kind: Kind) -> torch.Tensor:
    """The model's logits as `collate`'s labels are: a decoder's column t predicts column t + 1."""
    return logits[:, :-1] if kind == "decoder" else logits


def row_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Semantics: out[b] = mean over b's labelled tokens of the cross entropy, fp32 [B].

    Args:
        logits: [B, A, V], or [B, V] with one label each.
        labels: int64 [B, A] or [B].
    """
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(len(labels), -1)
    counted = (labels != IGNORED).view(len(labels), -1).sum(-1).clamp_min(1)
    return losses.sum(-1) / counted


def write_rows(path: Path, rows: Sequence[Example]) -> Path:
    """Write rows as `unlearn_serve.data.read_examples` reads them, and return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Rows of several files may share ids; what a row is called matters to messages alone.
    path.write_text("".join(json.dumps(_row(one)) + "\n" for one in rows), encoding="utf-8")
    return path


def _row(one: Example) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if one.answer != one.completion.strip():
        extra["answer"] = one.answer
    if one.paraphrased_answer is not None:
        extra["paraphrased_answer"] = one.paraphrased_answer
    if one.perturbed_answers:
        extra["perturbed_answer"] = list(one.perturbed_answers)
    match one.prompt:
        case None:
            return {"text": one.completion, **extra}
        case str(prompt):
            return {"prompt": prompt, "completion": one.completion, **extra}
        case messages:
            turns = [message.model_dump() for message in messages]
            return {"messages": [*turns, {"role": "assistant", "content": one.completion}], **extra}
