"""This project's methods, through its own trainer: the paper's objective, and a bounded one."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.paper.baselines.meter import Meter, WithinBudget
from benchmarks.paper.baselines.models import fresh_folder, load_original, weight_bytes
from benchmarks.paper.baselines.product import json_settings, train_args
from benchmarks.paper.task import Budget, Task, Unlearned
from unlearn_serve.format import read_adapter_dir
from unlearn_serve.layers import load_adapter
from unlearn_serve.training import Name, train


@dataclass(frozen=True, kw_only=True)
class Eul:
    """Semantics: U_i(h) = h + W_up,i act(W_down,i h) behind the feed-forward networks of a frozen original.

    `eul` is Chen & Yang's objective with the paper's settings (unbounded), `eul-bounded` NPO a token at a time (`tnpo`)
    with the retained answers held to the original's distribution; equations in docs/training.md.
    """

    name: str

    recipe: Name
    """Which of `unlearn_serve.training.RECIPES`."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainArgs` that outweigh the recipe's. With `frozen_cache`, a name in the method's folder, the request
    is trained twice: as a model's first, whose seconds are in `Unlearned.details`, and as any later one, which is
    accounted for and given back."""

    def run(self, task: Task, budget: Budget) -> Unlearned:
        """Train an adapter; see `Baseline.run`."""
        folder = fresh_folder(task, self.name)
        args = train_args(task, self.recipe, folder, self.settings)
        first: dict[str, float] = {}
        if args.frozen_cache is not None:
            with Meter() as meter:
                train(replace(args, out=folder / "first"), callbacks=[WithinBudget(meter, budget)])
            shutil.rmtree(folder / "first")
            first["first_request_seconds"] = meter.accounting(stored_bytes=0, served_bytes=0).seconds
        with Meter() as meter:
            adapter = train(args, callbacks=[WithinBudget(meter, budget)])
        outcome = read_adapter_dir(adapter)[0].provenance.objective
        found = Unlearned(
            method=self.name,
            model=load_adapter(load_original(task), adapter).eval(),
            # The Grams are kept for the next request's fusion, what the frozen model makes of guards for its training.
            accounting=meter.accounting(
                stored_bytes=weight_bytes(folder),
                served_bytes=(adapter / "adapter_model.safetensors").stat().st_size,
            ),
            checkpoint=task.original,
            adapter=adapter,
            details={
                "settings": json_settings(args),
                **first,
                **{
                    key: value for key, value in outcome.items() if key == "stopped_early" or key.startswith("reached_")
                },
            },
        )
        if args.frozen_cache is not None:
            shutil.rmtree(args.frozen_cache)  # accounted for; some MB a retained row
        return found.written(folder)
