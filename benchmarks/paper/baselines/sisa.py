"""SISA (Bourtoule et al., "Machine Unlearning", IEEE S&P 2021): exact unlearning by training on shards and slices.

The rows are shuffled by the seed and dealt into S shards; each shard has a model of its own and is cut into R slices,
which its model meets one after another:

    stage j of shard s:  theta_s,j = fit(theta_s,j-1, slices 1..j of s),  theta_s,0 = theta_base,  e_j epochs
    answer:              p(y | x) = 1/S sum over s of p_s,R(y | x)

Every theta_s,j is kept. A deletion takes rows out of some slices; of each shard that lost any, the stages from the
first such slice on are trained again from the checkpoint before it, and nothing else. The result has the distribution
of training from scratch without the rows. e_j = 2 e / (R + 1), so that slicing costs as many row passes as e epochs.
"""

import hashlib
import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, set_seed

from benchmarks.paper.baselines.ensemble import Ensemble
from benchmarks.paper.baselines.fitting import fit_rows
from benchmarks.paper.baselines.meter import Meter, WithinBudget
from benchmarks.paper.baselines.models import (
    classes_of,
    load_model,
    load_tokenizer,
    new_classes,
    pad_id,
    save_model,
    weight_bytes,
)
from benchmarks.paper.baselines.rows import encode_rows
from benchmarks.paper.task import RECORD_NAME, Accounting, Budget, Task, Unlearned
from unlearn_serve.data import Example

Slices = Sequence[Sequence[Example]]


@dataclass(frozen=True, kw_only=True)
class Sisa:
    """The method with its shape.

    Files below `task.work / name`: before/<s>/<j>, the model of shard s after stage j, made once, counted as `prepared`
    and used by every request on the same data and schedule; after/<s>/<j>, the stages that this request trained again.
    """

    name: str = "sisa"

    shards: int = 5
    """S: models, each trained on one S-th of the rows."""

    slices: int = 3
    """R: stages, and checkpoints kept, a shard."""

    def run(self, task: Task, budget: Budget) -> Unlearned:
        """Train the affected stages again; see `Baseline.run`.

        The stage that reaches a cap of `budget` is the last to be trained; shards that are left then answer with the
        models they had before their first affected stage, which know nothing of the forgotten rows either.

        Raises:
            ValueError: there are fewer rows than slices.
        """
        folder = task.work / self.name
        (folder / RECORD_NAME).unlink(missing_ok=True)
        dealt = deal(task.train, shards=self.shards, slices=self.slices, seed=task.seed)
        prepared = self._prepare(task, dealt, folder / "before")
        shutil.rmtree(folder / "after", ignore_errors=True)
        gone = set(task.forget)
        affected = {shard: first for shard, cut in enumerate(dealt) if (first := first_affected(cut, gone)) is not None}
        finals = [folder / "before" / str(shard) / str(self.slices) for shard in range(self.shards)]
        trainable = 0
        with Meter() as meter:
            for shard, first in affected.items():
                kept = [[row for row in piece if row not in gone] for piece in dealt[shard]]
                model = train_stages(
                    task,
                    kept,
                    first=first,
                    start=_start(task, folder / "before" / str(shard), first),
                    out=folder / "after" / str(shard),
                    seed=task.seed + shard,
                    callbacks=[WithinBudget(meter, budget)],
                    exhausted=lambda: meter.exhausts(budget),
                )
                finals[shard] = folder / "after" / str(shard) / str(self.slices)
                trainable += model.num_parameters()
                del model
        members = [load_model(one, task.kind, frozen=True) for one in finals]
        replaced = [folder / "before" / str(s) / str(j) for s, first in affected.items() for j in self._from(first)]
        accounting = meter.accounting(
            stored_bytes=weight_bytes(folder) - weight_bytes(*replaced),
            served_bytes=weight_bytes(*finals),
            trainable_parameters=trainable,
        )
        found = Unlearned(
            method=self.name,
            model=Ensemble(members),
            accounting=accounting,
            prepared=prepared,
            details={
                "shards": self.shards,
                "slices": self.slices,
                "retrained": {str(s): list(self._from(first)) for s, first in affected.items()},
                "members": [str(one) for one in finals],
            },
        )
        return found.written(folder)

    def _from(self, first: int) -> range:
        return range(first, self.slices + 1)

    def _prepare(self, task: Task, dealt: Sequence[Slices], folder: Path) -> Accounting:
        """Train all stages of all shards, or take those of an earlier request on the same data and schedule."""
        record = folder / "prepared.json"
        digest = _digest(task, self.shards, self.slices)
        if record.exists():
            found = json.loads(record.read_text())
            if found["digest"] == digest:
                return Accounting(**found["accounting"])
        shutil.rmtree(folder, ignore_errors=True)
        trainable = 0
        with Meter() as meter:
            for shard, cut in enumerate(dealt):
                model = train_stages(
                    task, cut, first=1, start=task.base, out=folder / str(shard), seed=task.seed + shard
                )
                trainable += model.num_parameters()
                del model
        finals = [folder / str(shard) / str(self.slices) for shard in range(self.shards)]
        accounting = meter.accounting(
            stored_bytes=weight_bytes(folder), served_bytes=weight_bytes(*finals), trainable_parameters=trainable
        )
        record.write_text(json.dumps({"digest": digest, "accounting": asdict(accounting)}, indent=2) + "\n")
        return accounting


def deal(rows: Sequence[Example], *, shards: int, slices: int, seed: int) -> list[list[list[Example]]]:
    """Return, by shard and slice, rows in an order drawn by `seed`; sizes differ by one at most.

    Raises:
        ValueError: there are fewer rows than slices in all.
    """
    if len(rows) < shards * slices:
        raise ValueError(
            f"expected at least {shards} x {slices} rows, a row a slice, got {len(rows)}; use fewer shards"
        )
    order = random.Random(seed).sample(list(rows), len(rows))
    dealt = [order[shard::shards] for shard in range(shards)]
    return [
        [shard[len(shard) * j // slices : len(shard) * (j + 1) // slices] for j in range(slices)] for shard in dealt
    ]


def first_affected(cut: Slices, gone: set[Example]) -> int | None:
    """Return the first stage (from 1) whose slice loses a row, or None."""
    return next((j for j, piece in enumerate(cut, start=1) if not gone.isdisjoint(piece)), None)


def train_stages(
    task: Task,
    cut: Slices,
    *,
    first: int,
    start: Path,
    out: Path,
    seed: int,
    callbacks: Sequence[TrainerCallback] = (),
    exhausted: Callable[[], bool] = lambda: False,
) -> PreTrainedModel:
    """Train stages from `first` on of a shard, beginning with the checkpoint `start`; return the last stage's model.

    Stage j is seeded by `seed` and j alone, so that stages trained again equal those of a training from scratch. Each
    is written to out/<j>. Once `exhausted` says so, the stages that remain leave the model as it is.
    """
    tokenizer = load_tokenizer(task.base)
    set_seed(seed)
    model = load_model(start, task.kind, frozen=False, classes=new_classes(task) if start == task.base else None)
    settings: dict[str, Any] = {"kind": task.kind, "max_length": task.max_length, "classes": classes_of(model.config)}
    epochs = 2 * task.fit.epochs / (len(cut) + 1)
    for stage in range(first, len(cut) + 1):
        rows = [row for piece in cut[:stage] for row in piece]
        if rows and not exhausted():
            fit_rows(
                model,
                encode_rows(rows, tokenizer, **settings),
                task.fit,
                kind=task.kind,
                pad=pad_id(tokenizer),
                seed=seed * (len(cut) + 1) + stage,
                precision=task.precision,
                max_steps=math.ceil(epochs * len(rows) / task.fit.batch_size),
                callbacks=callbacks,
            )
        save_model(model, tokenizer, out / str(stage))
    return model


def _start(task: Task, folder: Path, first: int) -> Path:
    return task.base if first == 1 else folder / str(first - 1)


def _digest(task: Task, shards: int, slices: int) -> str:
    """What the stages before any request depend on; the rows by value, the base by its folder."""
    said = repr((task.train, task.fit, task.base.resolve(), task.kind, task.seed, task.precision, shards, slices))
    return hashlib.sha256(said.encode()).hexdigest()
