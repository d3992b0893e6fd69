"""Fine-tuning on what is retained, in the hope that the rest is overwritten ("catastrophic forgetting")."""

from dataclasses import asdict, dataclass

from benchmarks.paper.baselines.fitting import fit_checkpoint
from benchmarks.paper.baselines.models import fresh_folder
from benchmarks.paper.task import Budget, Fit, Task, Unlearned


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Semantics: theta_unlearned = fit(theta_original, retain)."""

    name: str = "finetune"

    fit: Fit | None = None
    """None: the task's."""

    def run(self, task: Task, budget: Budget) -> Unlearned:
        """Train the original on the retained rows; see `Baseline.run`."""
        out = fresh_folder(task, self.name)
        fit = self.fit or task.fit
        model, accounting = fit_checkpoint(
            task.original,
            out / "model",
            task.retain,
            fit,
            kind=task.kind,
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
            details={"fit": asdict(fit), "rows": len(task.retain)},
        )
        return found.written(out)
