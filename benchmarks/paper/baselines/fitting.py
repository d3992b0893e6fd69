"""Full fine-tuning on transformers' `Trainer`: what re-training, fine-tuning, SISA and reverse gradient have in common.

    L = 1/B sum over a batch's rows i of w_i CE_i        CE_i: mean over row i's answer tokens

with w_i = 1 for a row to learn and -1 for one to climb away from.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from benchmarks.paper.baselines.meter import Meter, WithinBudget
from benchmarks.paper.baselines.models import (
    classes_of,
    fresh_folder,
    load_model,
    load_tokenizer,
    pad_id,
    save_model,
    weight_bytes,
)
from benchmarks.paper.baselines.rows import Weighted, aligned_logits, collate, encode_rows, row_losses
from benchmarks.paper.task import Accounting, Budget, Fit, Kind, Precision, Task, Unlearned
from unlearn_serve.data import Example


class RowTrainer(Trainer):  # type: ignore[misc]  # transformers is not followed by mypy
    """`Trainer` with the loss above."""

    def __init__(self, *, kind: Kind, **settings: Any) -> None:
        super().__init__(**settings)
        self._kind = kind
        self.model_accepts_loss_kwargs = False  # so that micro-batches are averaged: the loss is a mean over rows
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002  # counts tokens, not rows
    ) -> Any:
        """Return L of the batch.

        Raises:
            FloatingPointError: it is not finite.
        """
        out = model(**inputs["inputs"])
        losses = row_losses(aligned_logits(out.logits, self._kind), inputs["labels"])
        loss = (inputs["weights"] * losses).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"step {self.state.global_step + 1}: expected a finite loss, got {loss.item()}; lower the learning rate"
            )
        return (loss, out) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Return 0: transformers' estimate expects the model's inputs at the top."""
        return 0


def fit_rows(
    model: PreTrainedModel,
    rows: Sequence[Weighted],
    fit: Fit,
    *,
    kind: Kind,
    pad: int,
    seed: int,
    precision: Precision,
    max_steps: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train all parameters of `model` on `rows`; mutates it, and leaves it in evaluation mode.

    Args:
        model: fp32 weights; under bf16 autocast where `precision` says so.
        rows: what to learn, in any order; each epoch shuffles them by `seed`.
        fit: the schedule.
        kind: of the model.
        pad: token id of padding.
        seed: of shuffling and dropout.
        precision: see `Task`.
        max_steps: optimiser steps in place of `fit.epochs`.
        callbacks: transformers callbacks.

    Raises:
        ValueError: `micro_batch_size` does not divide `batch_size`.
    """
    micro = fit.micro_batch_size or fit.batch_size
    if fit.batch_size % micro:
        raise ValueError(f"micro_batch_size: expected a divisor of batch_size {fit.batch_size}, got {micro}")
    model.config.pad_token_id = pad if model.config.pad_token_id is None else model.config.pad_token_id
    with tempfile.TemporaryDirectory() as scratch:
        settings = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=fit.epochs,
            max_steps=-1 if max_steps is None else max_steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=fit.batch_size // micro,
            optim="adamw_torch",
            learning_rate=fit.learning_rate,
            weight_decay=fit.weight_decay,
            max_grad_norm=fit.max_grad_norm,
            lr_scheduler_type="linear",
            warmup_steps=fit.warmup,
            bf16=precision == "bf16",
            use_cpu=not torch.accelerator.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            seed=seed,
        )
        trainer = RowTrainer(
            kind=kind,
            model=model,
            args=settings,
            train_dataset=list(rows),
            data_collator=partial(collate, kind=kind, pad_id=pad),
            callbacks=list(callbacks),
        )
        trainer.train()
    model.eval()


def fit_checkpoint(
    start: Path,
    out: Path,
    learn: Sequence[Example],
    fit: Fit,
    *,
    kind: Kind,
    unlearn: Sequence[Example] = (),
    seed: int = 0,
    precision: Precision = "fp32",
    max_length: int = 512,
    classes: dict[str, int] | None = None,
    budget: Budget | None = None,
) -> tuple[PreTrainedModel, Accounting]:
    """Fine-tune the checkpoint `start` on rows, write the result into `out`, return it with what it cost.

    Also how a task's original is made: `fit_checkpoint(base, original, train, fit, kind=..., seed=...)`.

    Args:
        start: checkpoint to begin with, and its tokenizer.
        out: folder of the result.
        learn: rows to learn.
        fit: the schedule.
        kind: of the model.
        unlearn: rows to climb away from, among the others (w_i = -1).
        seed: of the rows' order and of fresh weights.
        precision: see `Task`.
        max_length: see `Task`.
        classes: `label2id` of a head that `start` does not have yet.
        budget: caps.
    """
    set_seed(seed)
    tokenizer = load_tokenizer(start)
    model = load_model(start, kind, frozen=False, classes=classes)
    settings = {"kind": kind, "max_length": max_length, "classes": classes_of(model.config)}
    rows = [*encode_rows(learn, tokenizer, **settings), *encode_rows(unlearn, tokenizer, weight=-1.0, **settings)]
    with Meter() as meter:
        callbacks = [WithinBudget(meter, budget or Budget())]
        fit_rows(
            model, rows, fit, kind=kind, pad=pad_id(tokenizer), seed=seed, precision=precision, callbacks=callbacks
        )
    save_model(model, tokenizer, out)
    model.requires_grad_(False)
    size = weight_bytes(out)
    return model, meter.accounting(stored_bytes=size, served_bytes=size)


def run_fit(
    task: Task,
    budget: Budget,
    *,
    method: str,
    start: Path,
    fit: Fit | None,
    unlearn: Sequence[Example] = (),
    classes: dict[str, int] | None = None,
) -> Unlearned:
    """Run a method that is one call of `fit_checkpoint` on the retained rows; see `Baseline.run`.

    Args:
        task: the task.
        budget: caps.
        method: name of the method, and so of its folder.
        start: see `fit_checkpoint`.
        fit: see there; None: the task's.
        unlearn: see there.
        classes: see there.
    """
    out = fresh_folder(task, method)
    fit = fit or task.fit
    model, accounting = fit_checkpoint(
        start,
        out / "model",
        task.retain,
        fit,
        kind=task.kind,
        unlearn=unlearn,
        seed=task.seed,
        precision=task.precision,
        max_length=task.max_length,
        classes=classes,
        budget=budget,
    )
    found = Unlearned(
        method=method,
        model=model,
        accounting=accounting,
        checkpoint=out / "model",
        details={"fit": asdict(fit), "rows": len(task.retain) + len(unlearn)},
    )
    return found.written(out)
