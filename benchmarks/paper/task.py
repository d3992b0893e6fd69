"""What every method of unlearning is given, and what it gives back: the contract of the paper's experiments."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from unlearn_serve.data import Example
from unlearn_serve.data.forms import Form

Kind = Form
"""decoder: a causal language model. seq2seq: an encoder-decoder model (T5). classes: a sequence-classification head;
a row's completion is then the name of its class (`id2label`)."""

Precision = Literal["fp32", "bf16"]

RECORD_NAME = "unlearned.json"
"""In a method's folder: `Unlearned.record()`. Where it is, the method has finished."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a model is fine-tuned in full: how the original was made, and so how re-training and SISA make theirs.

    Loss: the mean over a batch's rows of the cross entropy per answer token. AdamW; the learning rate climbs in the
    first `warmup` of the steps and falls linearly to 0 over the rest.
    """

    learning_rate: float
    """Peak learning rate."""

    epochs: int = 3
    """Passes over the rows."""

    batch_size: int = 8
    """Rows in an optimiser step; an epoch's last batch may have fewer."""

    micro_batch_size: int | None = None
    """Rows in one pass, for memory; divides `batch_size`. None: all of a step's."""

    warmup: float = 0.06
    """Share of the steps."""

    weight_decay: float = 0.0
    """AdamW's, decoupled."""

    max_grad_norm: float = 1.0
    """Gradients are scaled down to this L2 norm."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One deletion request on one model."""

    name: str
    """For tables and messages."""

    kind: Kind
    """Of both checkpoints."""

    base: Path
    """Checkpoint folder of the pretrained model, before the task; with its tokenizer."""

    original: Path
    """Checkpoint folder of `base` fine-tuned on all of `train` by `fit`; with its tokenizer (see
    `benchmarks.paper.baselines.fitting.fit_checkpoint`, which makes it)."""

    train: tuple[Example, ...]
    """All that `original` was trained on: forgotten and retained rows, in the data set's order."""

    forget: tuple[Example, ...]
    """The rows of `train` that must go."""

    retain: tuple[Example, ...]
    """The rows of `train` that stay: `train` without `forget`."""

    fit: Fit
    """How `original` was made of `base` and `train`."""

    work: Path
    """Folder that methods write to: method m into `work/m`. What is there already is used again where it says so."""

    max_length: int = 512
    """Tokens that a row may have; longer ones are refused, never cut."""

    precision: Precision = "fp32"
    """bf16: full fine-tuning keeps fp32 weights and computes under bf16 autocast; methods that freeze the model hold it
    in bf16 and their own parameters in fp32."""

    seed: int = 0
    """Seeds everything: order of rows, shards, fresh weights."""

    def __post_init__(self) -> None:
        """Refuse rows that contradict each other: the methods would not be trained on the same data.

        Raises:
            ValueError: see above.
        """
        forget, retain = set(self.forget), set(self.retain)
        if not forget:
            raise ValueError(f"task {self.name!r}: expected rows to forget, got none")
        if both := forget & retain:
            raise ValueError(f"task {self.name!r}: expected forgotten and retained rows apart, got {len(both)} in both")
        if forget | retain != set(self.train):
            raise ValueError(f"task {self.name!r}: expected train to be forget and retain together, got other rows")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a method may spend on the request; it stops at the first cap that it reaches. None: its own schedule.

    Re-training obeys too: give it no caps where it is the reference. Work that a method does once, before any request
    (SISA's shards), is not capped.
    """

    steps: int | None = None
    """Optimiser steps."""

    seconds: float | None = None
    """Wall time as `Accounting.seconds` has it; checked after every step."""

    tokens: int | None = None
    """Tokens forward as `Accounting.tokens_forward` has them; checked after every step."""


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """What a request cost, measured alike for every method (`benchmarks.paper.baselines.meter`)."""

    seconds: float
    """Wall time from the first pass through a model to the end of the method: no imports, no first load of weights, no
    writing of the result; with what a method loads and writes on the way (SISA between slices)."""

    optimizer_steps: int
    """Steps of every optimiser."""

    tokens_forward: int
    """Tokens, padding left out, in all passes through a model: training, teachers, checks, generation."""

    tokens_backward: int
    """Those of them in passes that a gradient went back through."""

    trainable_parameters: int
    """Numbers that the method may change."""

    stored_bytes: int
    """All weights and statistics kept for this and for the next request, beside the original model."""

    served_bytes: int
    """The part of it that answering needs: a whole model, or an adapter on top of the original."""

    peak_rss_bytes: int | None = None
    """Highest resident memory of the process while the clock ran; None where the system does not tell."""


@dataclass(frozen=True, kw_only=True)
class Unlearned:
    """A model after the request."""

    method: str
    """Name in `BASELINES`."""

    model: Any
    """In evaluation mode; called as a transformers model of the task's kind (input_ids, attention_mask, position_ids,
    past_key_values, ...), it gives an output with `logits`. Its tokenizer is the original's."""

    accounting: Accounting
    """What the request cost."""

    prepared: Accounting | None = None
    """What was spent once, before any request, now or by an earlier run (SISA's shards); None: nothing is needed."""

    checkpoint: Path | None = None
    """Folder of the whole model, or of the model under `adapter`; None: several models answer together (SISA)."""

    adapter: Path | None = None
    """Adapter folder: PEFT's LoRA (`lora`) or an unlearning adapter (`eul`, `eul-bounded`)."""

    details: Mapping[str, Any] = field(default_factory=dict)
    """What else is worth a row in a log: settings, affected shards, levels reached. JSON values."""

    def record(self) -> dict[str, Any]:
        """Return all but the model, as JSON values; paths as text."""
        return {
            "method": self.method,
            "accounting": asdict(self.accounting),
            "prepared": None if self.prepared is None else asdict(self.prepared),
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "adapter": None if self.adapter is None else str(self.adapter),
            "details": dict(self.details),
        }

    def written(self, folder: Path) -> Self:
        """Write `record()` to folder/unlearned.json and return self."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD_NAME).write_text(json.dumps(self.record(), indent=2) + "\n")
        return self


class Baseline(Protocol):
    """A method with its settings: a frozen dataclass, so that `dataclasses.replace` makes another setting of it."""

    name: str
    """Key in `BASELINES`, and folder under `Task.work`."""

    def run(self, task: Task, budget: Budget) -> Unlearned:
        """Unlearn `task.forget`; same arguments and threads give the same weights.

        Writes into `task.work / self.name`, unlearned.json last.

        Raises:
            ValueError: the method does not know the task's kind, or its settings do not fit the task.
            DataError: a row that the model cannot be trained on.
        """
        ...
