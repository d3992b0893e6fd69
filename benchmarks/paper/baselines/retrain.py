"""Re-training: exact unlearning, and the reference of every measure that asks what "never saw it" looks like."""

from dataclasses import asdict, dataclass

from benchmarks.paper.baselines.fitting import fit_checkpoint
from benchmarks.paper.baselines.models import fresh_folder, new_classes
from benchmarks.paper.task import Budget, Fit, Task, Unlearned


@dataclass(frozen=True, kw_only=True)
class Retrain:
    """Semantics: theta_unlearned = fit(theta_base, retain), with the schedule and the seed that made the original."""

    name: str = "retrain"

    fit: Fit | None = None
    """None: the task's."""

    def run(self, task: Task, budget: Budget) -> Unlearned:
        """Train the base on the retained rows; see `Baseline.run`."""
        out = fresh_folder(task, self.name)
        fit = self.fit or task.fit
        model, accounting = fit_checkpoint(
            task.base,
            out / "model",
            task.retain,
            fit,
            kind=task.kind,
            seed=task.seed,
            precision=task.precision,
            max_length=task.max_length,
            classes=new_classes(task),
            budget=budget,
        )
        found = Unlearned(
            method=self.name,
            model=model,
            accounting=accounting,
            checkpoint=out / "model",
            details={"fit": asdict(fit), "rows": len(task.retain)},
        )
        return found.written(out)
