"""Evaluate a base model before and after an adapter, on named sets, with the model loaded once."""

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_serve.data import Example, data_ref, encode, read_examples
from unlearn_serve.errors import DataError, UnsupportedModel
from unlearn_serve.evaluation.record import SetRecord, write_record
from unlearn_serve.evaluation.scoring import PASSES, Answer, score_examples, summarise
from unlearn_serve.format import (
    Evaluation,
    Manifest,
    fingerprint_base_model,
    read_adapter_dir,
    require_same_base,
    with_evaluation,
    write_manifest,
)
from unlearn_serve.format.fields import SET_NAME_PATTERN
from unlearn_serve.layers import load_adapter


def evaluate(
    model_dir: Path,
    adapter_dir: Path | None,
    sets: Mapping[str, Path],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    max_length: int = 2048,
    device: str | None = None,
    dtype: str = "auto",
    record: bool = True,
) -> Evaluation:
    """Score a model on each set: accuracy (the gold string occurs in the greedy answer) and probability of the answer.

    "before" is the plain model (layers switched off, bit for bit the base), "after" is with the adapter; without an
    adapter there is no "after".

    Args:
        model_dir: folder of the base model's checkpoint.
        adapter_dir: adapter directory, or None for the plain model alone.
        sets: JSONL files by set name (forget, retain, holdout, ...).
        max_new_tokens: longest answer to generate.
        batch_size: examples in one pass.
        max_length: most tokens of an example.
        device: torch device; None takes an accelerator where there is one.
        dtype: of the base model's weights; "auto" takes the checkpoint's.
        record: write the scores into the adapter's manifest.json, which gives it another digest, and all answers into
            evaluation.json beside it, which stays local.

    Raises:
        DataError: no sets, a bad set name, or a bad data file; all before the model is loaded.
        BaseModelMismatch: the adapter belongs to another base model.
        FormatError: the adapter directory is not valid.
        UnsupportedModel: `model_dir` is no checkpoint of a causal language model.
    """
    examples = _read_sets(sets)
    manifest = None if adapter_dir is None else _matching_manifest(model_dir, adapter_dir)
    tokenizer = _from_pretrained(AutoTokenizer, model_dir)
    for rows in examples.values():
        for row in rows:
            encode(row, tokenizer, max_length)
    model = _from_pretrained(AutoModelForCausalLM, model_dir, dtype=dtype).to(device or _device())
    if adapter_dir is not None:
        model = load_adapter(model, adapter_dir)
    model.eval()

    phases = ("before",) if adapter_dir is None else ("before", "after")
    answers: dict[str, dict[str, list[Answer]]] = {}
    with _progress() as progress:
        for phase in phases:
            plain = adapter_dir is not None and phase == "before"
            with model.disable_adapter() if plain else nullcontext():
                answers[phase] = {}
                for name, rows in examples.items():
                    task = progress.add_task(f"{phase}: {name}", total=PASSES * len(rows))
                    answers[phase][name] = score_examples(
                        model,
                        tokenizer,
                        rows,
                        max_new_tokens=max_new_tokens,
                        batch_size=batch_size,
                        max_length=max_length,
                        advance=_advancer(progress, task),
                    )
    scores = {phase: {name: summarise(given) for name, given in by_set.items()} for phase, by_set in answers.items()}
    evaluation = Evaluation(before=scores["before"], after=scores.get("after", {}))
    if adapter_dir is not None and manifest is not None and record:
        records = {
            name: SetRecord(
                data=data_ref(sets[name]),
                examples=rows,
                before=answers["before"][name],
                after=answers["after"][name],
            )
            for name, rows in examples.items()
        }
        write_record(adapter_dir, evaluation, records, max_new_tokens=max_new_tokens)
        write_manifest(adapter_dir, with_evaluation(manifest, evaluation))
    return evaluation


def _read_sets(sets: Mapping[str, Path]) -> dict[str, list[Example]]:
    if not sets:
        raise DataError("expected at least one set to evaluate on, got none; give for example --forget FILE")
    for name in sets:
        if re.fullmatch(SET_NAME_PATTERN[1:-1], name) is None:
            raise DataError(f"set {name!r}: expected a name of 1 to 32 of a-z 0-9 _ - that starts with a letter")
    return {name: read_examples(path) for name, path in sets.items()}


def _matching_manifest(model_dir: Path, adapter_dir: Path) -> Manifest:
    manifest, _ = read_adapter_dir(adapter_dir)
    require_same_base(manifest.base_model, fingerprint_base_model(model_dir))
    return manifest


def _from_pretrained(auto_class: Any, model_dir: Path, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(model_dir, local_files_only=True, **options)
    except (OSError, ValueError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise UnsupportedModel(
            f"{model_dir}: expected a checkpoint of a causal language model with its tokenizer, got: {reason}"
        ) from None


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _advancer(progress: Progress, task: Any) -> Callable[[int], None]:
    return lambda done: progress.advance(task, done)
