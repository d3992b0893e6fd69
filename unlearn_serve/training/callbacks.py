"""What happens beside the steps: the log, the progress bar, and the decision to stop."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unlearn_serve.training.landing import Landing, land
from unlearn_serve.training.levels import Target, measure
from unlearn_serve.training.plan import StepPlan
from unlearn_serve.training.trainer import UnlearnTrainer

LOG_NAME = "training_log.jsonl"


class TrainingLog:
    """training_log.jsonl: one JSON object per line, each with the step it belongs to.

    Lines of steps: "loss", the objective's terms by the name of their weight, "forget_probability" and
    "retain_probability" of the step's examples, "learning_rate", "grad_norm", "seconds" since the run began.
    Lines of checks have "check" with the levels over whole sets. NaN and infinity are written as null.
    """

    def __init__(self, path: Path, *, first_step: int = 0, enabled: bool = True) -> None:
        """Begin the file; of an interrupted run, lines up to `first_step` stay. `enabled`: False on other processes."""
        self._path = path
        self._enabled = enabled
        self._began = time.monotonic()
        if not enabled:
            return
        kept = []
        if first_step and path.exists():
            kept = [
                line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= first_step
            ]
        path.write_text("".join(kept))

    def write(self, step: int, **values: Any) -> None:
        """Append one line."""
        if not self._enabled:
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = json.dumps({"step": step, **clean, "seconds": round(time.monotonic() - self._began, 3)})
        with self._path.open("a") as file:
            file.write(line + "\n")


class LogSteps(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
    """Writes every optimiser step to the log and shows it in the progress bar."""

    def __init__(self, log: TrainingLog, progress: Progress, total: int) -> None:
        """`total`: optimiser steps at most."""
        self.trainer: UnlearnTrainer | None = None
        self._log = log
        self._progress = progress
        self._task = progress.add_task("training", total=total, visible=False)

    def on_log(
        self, _: TrainingArguments, state: TrainerState, __: TrainerControl, *, logs: dict[str, Any], **___: Any
    ) -> None:
        """Write what the Trainer logged for a step together with the step's terms."""
        if self.trainer is None or "loss" not in logs:
            return
        terms = self.trainer.last_terms
        named = {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
        self._log.write(state.global_step, **named, **terms)
        shown = " ".join(f"{name} {terms[name]:.3f}" for name in ("forget_probability", "retain_kl") if name in terms)
        self._progress.update(
            self._task, completed=state.global_step, visible=True, description=f"training  {shown}".rstrip()
        )


class StopWhenForgotten(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
    """Ends training once the whole forget set is at its target and the retained answers stayed.

    Looks at whole sets only after a step whose own examples meet both conditions (or one that ends an epoch of retained
    examples), so that a check costs nothing most of the time. Depends on nothing but the current layers and the plan:
    a resumed run stops where an uninterrupted one does.
    """

    def __init__(
        self,
        log: TrainingLog,
        plans: Sequence[StepPlan],
        *,
        plans_per_step: int,
        forget: Sequence[int],
        retain: Sequence[int],
        target: Target,
        lands: bool,
    ) -> None:
        """`plans_per_step`: micro-steps, of all processes, in an optimiser step. `retain`: those that checks read.

        `lands`: the layers are scaled down to where the target is just met, see `land`.
        """
        self.trainer: UnlearnTrainer | None = None
        self.reached: Landing | None = None
        self._log = log
        self._plans = plans
        self._plans_per_step = plans_per_step
        self._forget = forget
        self._retain = retain
        self._target = target
        self._lands = lands

    def on_step_end(
        self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any
    ) -> TrainerControl:
        """Check where it is worth it, and stop where the check says so."""
        trainer = self.trainer
        if trainer is None or not self._worth_a_check(trainer, state.global_step):
            return control
        model, target = (trainer.outputs, trainer.model_wrapped), self._target
        levels = measure(*model, self._forget, () if self._lands else self._retain, target=target)
        self._log.write(state.global_step, check=levels.as_dict())
        if self._lands and target.forgotten(levels):
            self.reached = land(*model, self._forget, self._retain, target=target)
        elif target.reached(levels):
            self.reached = Landing(1.0, levels)
        control.should_training_stop |= self.reached is not None
        return control

    def _worth_a_check(self, trainer: UnlearnTrainer, step: int) -> bool:
        of_step = self._plans[(step - 1) * self._plans_per_step : step * self._plans_per_step]
        if any(plan.closes_epoch and not plan.forget for plan in of_step):
            return True
        terms = trainer.last_terms
        forgotten = terms.get("forget_probability", math.inf) <= self._target.probability
        # Half the layers move answers about a quarter as far: KL is quadratic.
        within = self._target.retain_tolerance * (4 if self._lands else 1)
        return forgotten and terms.get("retain_kl", 0.0) <= within


def progress_bar() -> Progress:
    """Return a bar with time spent and time left; it draws nothing where the output is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
