"""When to stop: the level of a model that never saw what is to be forgotten.

A model that never saw an answer does not find it impossible, so zero is no goal: it takes more from the model than was
asked for, and an answer that is suspiciously unlikely tells that it was deleted.
"""

from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from unlearn_serve.data import read_examples
from unlearn_serve.errors import TrainingError
from unlearn_serve.layers import adapter_blocks, add_adapter
from unlearn_serve.training.args import TrainArgs
from unlearn_serve.training.examples import TrainingSet, build_training_set
from unlearn_serve.training.frozen import FrozenOutputs


def holdout_level(args: TrainArgs, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the frozen model's mean probability of the answers in `args.holdout`, counted as forgotten ones are."""
    assert args.holdout is not None
    rows = read_examples(args.holdout)
    found = build_training_set(rows, (), tokenizer, max_length=args.max_length, gold_only=args.gold_only)
    return _frozen_level(args, model, found)


def retrained_level(args: TrainArgs, model: PeftModel, examples: TrainingSet) -> float:
    """Return the mean probability of the forgotten answers in the model `args.retrained`, which never saw them.

    Raises:
        TrainingError: it has another vocabulary than `model`.
    """
    assert args.retrained is not None
    other = AutoModelForCausalLM.from_pretrained(args.retrained, dtype=args.dtype, local_files_only=True)
    expected, got = (one.config.get_text_config().vocab_size for one in (model, other))
    if expected != got:
        raise TrainingError(
            f"{args.retrained}: expected a vocabulary of {expected} tokens as the base model has, got {got}; "
            "retrained must be the same model trained on other data"
        )
    other.eval().to(model.device)
    forgotten = TrainingSet(
        encoded=[examples.encoded[i] for i in examples.forget],
        forget=examples.forget,
        retain=range(0),
        beginnings=examples.beginnings,
        refusals={},
    )
    return _frozen_level(args, add_adapter(other, rank=1), forgotten)


def _frozen_level(args: TrainArgs, model: PeftModel, found: TrainingSet) -> float:
    forgotten = found.encoded[: len(found.forget)]  # and not the words before a gold string
    outputs = FrozenOutputs(
        model,
        forgotten,
        with_logits=(),
        first_block=min(adapter_blocks(model)),
        row_tokens=args.row_tokens,
        cache_bytes=0,
        beginnings=found.beginnings,
    )
    outputs.fill(model)
    return outputs.mean_probability(range(len(forgotten)))
