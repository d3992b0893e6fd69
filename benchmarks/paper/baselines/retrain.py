"""Re-training: exact unlearning, and the reference of every measure that asks what "never saw it" looks like."""

from dataclasses import dataclass

from benchmarks.paper.baselines.fitting import run_fit
from benchmarks.paper.baselines.models import new_classes
from benchmarks.paper.task import Budget, Fit, Task, Unlearned


@dataclass(frozen=True, kw_only=True)
class Retrain:
    """Semantics: theta_unlearned = fit(theta_base, retain), with the schedule and the seed that made the original."""

    name: str = "retrain"

    fit: Fit | None = None
    """None: the task's."""

    def run(self, task: Task, budget: Budget) -> Unlearned:
        """Train the base on the retained rows; see `Baseline.run`."""
        return run_fit(task, budget, method=self.name, start=task.base, fit=self.fit, classes=new_classes(task))
