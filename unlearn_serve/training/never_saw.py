"""What a model that never saw the forgotten rows says of them: the level to stop at, and the teacher of `bad-teacher`.

A model that never saw an answer does not find it impossible, so zero is no goal: it takes more from the model than was
asked for, and an answer that is suspiciously unlikely tells that it was deleted.
"""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from unlearn_serve.data import read_examples
from unlearn_serve.errors import TrainingError
from unlearn_serve.layers import add_adapter
from unlearn_serve.training.args import TrainArgs
from unlearn_serve.training.examples import TrainingSet, build_training_set
from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.levels import Levels, forget_levels
from unlearn_serve.training.terms import Likeliest

KEPT_TOKENS = 128
"""Tokens of a distribution that are kept at each place: 1.5 KB, where the vocabulary's logits take hundreds."""


def holdout_levels(args: TrainArgs, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> Levels:
    """Return the frozen model's levels on the answers in `args.holdout`, counted as forgotten ones are."""
    assert args.holdout is not None
    rows = read_examples(args.holdout)
    found = build_training_set(rows, (), tokenizer, max_length=args.max_length, gold_only=args.gold_only)
    return _levels(args, model, found)


def retrained_levels(args: TrainArgs, model: PeftModel, examples: TrainingSet) -> Levels:
    """Return the levels of the forgotten answers in the model `args.retrained`, which never saw them.

    Raises:
        TrainingError: it has another vocabulary than `model`.
    """
    assert args.retrained is not None
    return _levels(args, _another(args, "retrained", args.retrained, model), examples)


@torch.no_grad()
def reference_answers(args: TrainArgs, model: PeftModel, examples: TrainingSet) -> dict[int, Likeliest]:
    """Return, by forgotten example, what the model `args.reference` expects at each place of its answer.

    The model is loaded, asked once, and let go.

    Raises:
        TrainingError: it has another vocabulary than `model`.
    """
    assert args.reference is not None
    other = _another(args, "reference", args.reference, model)
    outputs = _outputs(args, other, examples)
    found: dict[int, Likeliest] = {}
    for row in outputs.rows(examples.forget):
        kept = Likeliest.of(outputs.teacher_logits(other, row), KEPT_TOKENS)
        for n, member in enumerate(row.members):
            places = row.owner == n
            found[member] = Likeliest(kept.ids[places], kept.log_probs[places])
    return found


def _another(args: TrainArgs, name: str, folder: Path, model: PeftModel) -> PeftModel:
    other = AutoModelForCausalLM.from_pretrained(folder, dtype=args.dtype, local_files_only=True)
    expected, got = (one.config.get_text_config().vocab_size for one in (model, other))
    if expected != got:
        raise TrainingError(
            f"{folder}: expected a vocabulary of {expected} tokens as the base model has, got {got}; "
            f"{name} must be the same model trained on other data"
        )
    return add_adapter(other.eval().to(model.device), rank=1)


def _levels(args: TrainArgs, model: PeftModel, found: TrainingSet) -> Levels:
    return forget_levels(_outputs(args, model, found), model, found.forget, frozen=True)


def _outputs(args: TrainArgs, model: PeftModel, found: TrainingSet) -> FrozenOutputs:
    outputs = FrozenOutputs(
        model,
        found.encoded[: len(found.forget)],  # and not the words before a gold string
        with_logits=range(len(found.forget)),  # read once, from the pass that fills
        first_block=0,
        row_tokens=args.row_tokens,
        cache_bytes=args.cache_mb * 2**20,
        beginnings=found.beginnings,
    )
    outputs.fill(model)
    return outputs
