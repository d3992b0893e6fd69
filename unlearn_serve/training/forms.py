"""The kinds of models that training takes, and how an example of theirs becomes tokens and logits.

    decoder   prompt and answer in one row, packed with others; the logits before each answer token
    seq2seq   the prompt is the encoder's, the answer the decoder's (T5); the logits at each answer token
    classes   the prompt alone, and as answer one label: the class (a sequence-classification head)

In each an example is an `Encoded` whose prompt carries no labels and whose answer is labelled; for classes the answer's
one "token" is the class's number.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from unlearn_serve.data import IGNORED, Encoded, Example, encode, prompt_ids
from unlearn_serve.errors import DataError, TrainingError
from unlearn_serve.training.args import TrainArgs
from unlearn_serve.training.examples import TrainingSet
from unlearn_serve.training.rows import Row

Form = Literal["decoder", "seq2seq", "classes"]


def load_model(args: TrainArgs) -> tuple[PreTrainedModel, Form]:
    """Load the base model with the head that its checkpoint names, and tell its form.

    Raises:
        TrainingError: settings that only decoders know.
    """
    config = AutoConfig.from_pretrained(args.model, local_files_only=True)
    architecture = (config.architectures or [""])[0]
    form: Form = "decoder"
    loader: Any = AutoModelForCausalLM
    if architecture.endswith("ForSequenceClassification"):
        form, loader = "classes", AutoModelForSequenceClassification
    elif config.is_encoder_decoder:
        form, loader = "seq2seq", AutoModelForSeq2SeqLM
    if form != "decoder":
        _require_whole_answers(args, form, architecture)
    return loader.from_pretrained(args.model, dtype=args.dtype, local_files_only=True), form


def _require_whole_answers(args: TrainArgs, form: Form, architecture: str) -> None:
    unknown = {
        "gold_only": args.gold_only,
        "own_answers": args.own_answers,
        "lm_on_text": args.lm_on_text and form == "classes",
        "holdout": args.holdout is not None,
        "retrained": args.retrained is not None,
        "reference": args.reference is not None,
        "a refusal": args.objective.refuses,
        "misdirection (rmu)": bool(args.objective.forget_rmu or args.objective.retain_rmu),
    }
    if wrong := [name for name, used in unknown.items() if used]:
        raise TrainingError(f"{architecture}: expected settings that fit it, got {', '.join(wrong)}; switch them off")


def build_whole_set(
    forget: Sequence[Example],
    retain: Sequence[Example],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    form: Form,
    max_length: int,
) -> TrainingSet:
    """Encode data sets for a model that is no decoder; what is forgotten is not retained as well.

    Raises:
        DataError: see `encode`; running text without a prompt; a completion that is no class of the model's.
    """

    classes = {name: int(number) for number, name in (model.config.id2label or {}).items()}

    def encoded(example: Example) -> Encoded:
        if example.prompt is None:
            raise DataError(f"{example.source}: expected a prompt and a completion, got running text")
        if form == "seq2seq":
            return encode(example, tokenizer, max_length)
        return _encode_class(example, tokenizer, classes, max_length)

    def unique(examples: Sequence[Example]) -> dict[tuple[int, ...], Encoded]:
        # Where prompt and answer meet tells them apart too: the labels are the answer's own tokens.
        found = [encoded(example) for example in examples]
        return {(one.answer_tokens, *one.input_ids): one for one in found}

    forgotten, retained = unique(forget), unique(retain)
    kept = [one for key, one in retained.items() if key not in forgotten]
    return TrainingSet(
        encoded=[*forgotten.values(), *kept],
        forget=range(len(forgotten)),
        retain=range(len(forgotten), len(forgotten) + len(kept)),
        beginnings={},
        refusals={},
    )


def _encode_class(
    example: Example, tokenizer: PreTrainedTokenizerBase, classes: dict[str, int], max_length: int
) -> Encoded:
    label = example.completion.strip()
    if label not in classes:
        known = ", ".join(map(repr, classes))
        raise DataError(f"{example.source}: expected one of the model's classes ({known}), got {label[:60]!r}")
    prompt = prompt_ids(example, tokenizer)
    if len(prompt) > max_length:
        raise DataError(f"{example.source}: expected at most {max_length} tokens, got {len(prompt)}; raise max_length")
    return Encoded([*prompt, classes[label]], [IGNORED] * len(prompt) + [classes[label]])


def logits_of(form: Form, forward: nn.Module, row: Row) -> torch.Tensor:
    """Return the logits [A, V] of the one example in `row`, of a model that is no decoder; for classes [1, classes]."""
    answers = len(row.labels)
    prompt = row.input_ids[:, : row.input_ids.shape[1] - answers]
    mask = torch.ones_like(prompt)
    if form == "classes":
        logits: torch.Tensor = forward(input_ids=prompt, attention_mask=mask).logits
        return logits
    return forward(input_ids=prompt, attention_mask=mask, labels=row.labels[None]).logits[0]  # type: ignore[no-any-return]
