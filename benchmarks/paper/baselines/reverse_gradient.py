"""Reverse gradient: fine-tune on everything, with the sign of the forgotten rows' gradient turned.

Liu, Liu & Stone, "Continual Learning and Private Unlearning", CoLLAs 2022; a baseline of Chen & Yang, EMNLP 2023.
"""

from dataclasses import asdict, dataclass

from benchmarks.paper.baselines.fitting import fit_checkpoint
from benchmarks.paper.baselines.models import fresh_folder
from benchmarks.paper.task import Budget, Fit, Task, Unlearned


@dataclass(frozen=True, kw_only=True)
class ReverseGradient:
    """Semantics: from the original, L = 1/B (sum over retained rows of CE - sum over forgotten rows of CE).

    Rows of both sets are shuffled together. Without a lower bound: forgotten answers become ever less likely.
    """

    name: str = "reverse-gradient"

    fit: Fit | None = None
    """None: the task's."""

    def run(self, task: Task, budget: Budget) -> Unlearned:
        """Train the original on all rows, signs by set; see `Baseline.run`."""
        out = fresh_folder(task, self.name)
        fit = self.fit or task.fit
        model, accounting = fit_checkpoint(
            task.original,
            out / "model",
            task.retain,
            fit,
            kind=task.kind,
            unlearn=task.forget,
            seed=task.seed,
            precision=task.precision,
            max_length=task.max_length,
            budget=budget,
        )
        found = Unlearned(
            method=self.name,
            model=model,
            accounting=accounting,
            checkpoint=out / "model",
            details={"fit": asdict(fit), "rows": len(task.train)},
        )
        return found.written(out)
