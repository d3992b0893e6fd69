"""The kinds of models that are trained and evaluated, and how an example of theirs becomes tokens.

    decoder   prompt and answer in one row; the logits before each answer token
    seq2seq   the prompt is the encoder's, the answer the decoder's (T5); the logits at each answer token
    classes   the prompt alone, and as answer one label: the class (a sequence-classification head)

In each an example is an `Encoded` whose prompt carries no labels and whose answer is labelled; for classes the answer's
one "token" is the class's number.
"""

from collections.abc import Mapping
from typing import Any, Literal

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from unlearn_serve.data.batch import IGNORED, Encoded
from unlearn_serve.data.encoding import encode, prompt_ids
from unlearn_serve.data.rows import Example
from unlearn_serve.errors import DataError

Form = Literal["decoder", "seq2seq", "classes"]

LOADERS: Mapping[Form, Any] = {
    "decoder": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classes": AutoModelForSequenceClassification,
}
"""transformers' class that loads a checkpoint of each form, with the head that it was saved with."""


def form_of(config: PretrainedConfig) -> Form:
    """The form of the checkpoint with this config.json."""
    if architecture_of(config).endswith("ForSequenceClassification"):
        return "classes"
    return "seq2seq" if config.is_encoder_decoder else "decoder"


def architecture_of(config: PretrainedConfig) -> str:
    """The name of the class that a checkpoint was saved from; empty where config.json has none."""
    return str((config.architectures or [""])[0])


def encode_as(
    form: Form, example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int, config: PretrainedConfig
) -> Encoded:
    """Encode an example for a model of this form; `config` names its classes.

    Raises:
        DataError: see `encode`; no prompt, for a model that is no decoder; a completion that is no class.
    """
    if form == "decoder":
        return encode(example, tokenizer, max_length)
    if example.prompt is None:
        raise DataError(f"{example.source}: expected a prompt and a completion, got running text")
    if form == "seq2seq":
        return encode(example, tokenizer, max_length)
    classes = {name: int(number) for number, name in (config.id2label or {}).items()}
    label = example.completion.strip()
    if label not in classes:
        known = ", ".join(map(repr, classes))
        raise DataError(f"{example.source}: expected one of the model's classes ({known}), got {label[:60]!r}")
    prompt = prompt_ids(example, tokenizer)
    if len(prompt) > max_length:
        raise DataError(f"{example.source}: expected at most {max_length} tokens, got {len(prompt)}; raise max_length")
    return Encoded([*prompt, classes[label]], [IGNORED] * len(prompt) + [classes[label]])
