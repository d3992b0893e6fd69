"""Reverse gradient: fine-tune on everything, with the sign of the forgotten rows' gradient turned.

Liu, Liu & Stone, "Continual Learning and Private Unlearning", CoLLAs 2022; a baseline of Chen & Yang, EMNLP 2023.
"""

from dataclasses import dataclass

from benchmarks.paper.baselines.fitting import run_fit
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
        return run_fit(task, budget, method=self.name, start=task.original, fit=self.fit, unlearn=task.forget)
