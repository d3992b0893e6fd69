"""Open a checkpoint of any form to be read in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from unlearn_serve.data.forms import LOADERS, Form
from unlearn_serve.errors import UnsupportedModel
from unlearn_serve.evaluation.checkpoint import Checkpoint
from unlearn_serve.evaluation.readings import Source
from unlearn_serve.evaluation.whole_answers import Classifier, EncoderDecoder


def open_config(model_dir: Path) -> PretrainedConfig:
    """Read config.json.

    Raises:
        UnsupportedModel: `model_dir` is no checkpoint that transformers can load.
    """
    with _checkpoint_expected(model_dir):
        return AutoConfig.from_pretrained(model_dir, local_files_only=True)


def open_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """Load the checkpoint's tokenizer; raises as `open_config`."""
    with _checkpoint_expected(model_dir):
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        return found


def open_model(model_dir: Path, form: Form, *, dtype: str, device: str | None) -> Any:
    """Load the weights, onto an accelerator where there is one and `device` names none; raises as `open_config`."""
    with _checkpoint_expected(model_dir):
        model = LOADERS[form].from_pretrained(model_dir, dtype=dtype, local_files_only=True)
    return model.to(device or torch.accelerator.current_accelerator() or torch.device("cpu"))


def source_of(form: Form, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int) -> Source:
    """What reads a model of this form.

    Raises:
        UnsupportedModel: see `Checkpoint`.
    """
    match form:
        case "decoder":
            return Checkpoint(model, tokenizer, batch_size=batch_size)
        case "seq2seq":
            return EncoderDecoder(model, tokenizer, batch_size=batch_size)
        case "classes":
            return Classifier(model, batch_size=batch_size)


@contextmanager
def _checkpoint_expected(model_dir: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise UnsupportedModel(
            f"{model_dir}: expected a checkpoint of a language model or classifier with its tokenizer, got: {reason}"
        ) from None
