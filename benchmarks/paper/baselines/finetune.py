"""Fine-tuning on what is retained, in the hope that the rest is overwritten ("catastrophic forgetting")."""

from dataclasses import dataclass

from benchmarks.paper.baselines.fitting import run_fit
from benchmarks.paper.task import Budget, Fit, Task, Unlearned


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Semantics: theta_unlearned = fit(theta_original, retain)."""

    name: str = "finetune"

    fit: Fit | None = None
    """None: the task's."""

    def run(self, task: Task, budget: Budget) -> Unlearned:
        """Train the original on the retained rows; see `Baseline.run`."""
        return run_fit(task, budget, method=self.name, start=task.original, fit=self.fit)
