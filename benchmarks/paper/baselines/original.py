"""The model before the request: the row that every other one is compared with. Costs nothing, forgets nothing."""

from dataclasses import dataclass

from benchmarks.paper.baselines.models import fresh_folder, load_original
from benchmarks.paper.task import Accounting, Budget, Task, Unlearned


@dataclass(frozen=True, kw_only=True)
class Original:
    """Semantics: theta_unlearned = theta_original."""

    name: str = "original"

    def run(self, task: Task, budget: Budget) -> Unlearned:
        """Load the original; see `Baseline.run`."""
        del budget
        nothing = Accounting(
            seconds=0.0,
            optimizer_steps=0,
            tokens_forward=0,
            tokens_backward=0,
            trainable_parameters=0,
            stored_bytes=0,
            served_bytes=0,
        )
        found = Unlearned(method=self.name, model=load_original(task), accounting=nothing, checkpoint=task.original)
        return found.written(fresh_folder(task, self.name))
