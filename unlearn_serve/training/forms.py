"""Models that are no decoders: how training loads them, encodes their examples and takes their logits.

`unlearn_serve.data.forms` says what forms there are.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from unlearn_serve.data import Encoded, Example
from unlearn_serve.data.forms import LOADERS, Form, architecture_of, encode_as, form_of
from unlearn_serve.errors import TrainingError
from unlearn_serve.training.args import TrainArgs
from unlearn_serve.training.examples import TrainingSet
from unlearn_serve.training.rows import Row


def load_model(args: TrainArgs) -> tuple[PreTrainedModel, Form]:
    """Load the base model with the head that its checkpoint names, and tell its form.

    Raises:
        TrainingError: settings that only decoders know.
    """
    config = AutoConfig.from_pretrained(args.model, local_files_only=True)
    form = form_of(config)
    if form != "decoder":
        _require_whole_answers(args, form, architecture_of(config))
    return LOADERS[form].from_pretrained(args.model, dtype=args.dtype, local_files_only=True), form


def _require_whole_answers(args: TrainArgs, form: Form, architecture: str) -> None:
    unknown = {
        "gold_only": args.gold_only,
        "own_answers": args.own_answers,
        "lm_on_text": args.lm_on_text and form == "classes",
        "holdout": args.holdout is not None,
        "retrained": args.retrained is not None,
        "reference": args.reference is not None,
        "frozen_cache": args.frozen_cache is not None,
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
        DataError: see `encode_as`.
    """

    def unique(examples: Sequence[Example]) -> dict[tuple[int, ...], Encoded]:
        # Where prompt and answer meet tells them apart too: the labels are the answer's own tokens.
        found = [encode_as(form, example, tokenizer, max_length, model.config) for example in examples]
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


def logits_of(form: Form, forward: nn.Module, row: Row) -> torch.Tensor:
    """Return the logits [A, V] of the one example in `row`, of a model that is no decoder; for classes [1, classes]."""
    answers = len(row.labels)
    prompt = row.input_ids[:, : row.input_ids.shape[1] - answers]
    mask = torch.ones_like(prompt)
    logits: torch.Tensor
    if form == "classes":
        logits = forward(input_ids=prompt, attention_mask=mask).logits
    else:
        logits = forward(input_ids=prompt, attention_mask=mask, labels=row.labels[None]).logits[0]
    return logits
