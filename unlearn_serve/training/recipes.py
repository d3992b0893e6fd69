"""The named objectives with the settings that belong to them: what `unlearn-serve train --objective NAME` chooses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from unlearn_serve.training.args import TrainArgs
from unlearn_serve.training.objectives import (
    BAD_TEACHER,
    EUL,
    GRAD_DIFF,
    IDK,
    NPO,
    RMU,
    SIMNPO,
    TNPO,
    Objective,
)

Name = Literal["npo", "eul", "tnpo", "bad-teacher", "simnpo", "grad-diff", "idk", "rmu"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An objective, and what else differs from `TrainArgs`' defaults."""

    objective: Objective
    settings: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, **given: Any) -> TrainArgs:
        """Return the arguments of a run: those given, then the recipe's, then the defaults of `TrainArgs`."""
        return TrainArgs(**{"objective": self.objective, **self.settings, **given})


RECIPES: Mapping[Name, Recipe] = MappingProxyType(
    {
        "npo": Recipe(objective=NPO),
        # As published: no early stop, whole answers, the LM loss on whole rows, a layer in every block, epochs in turn.
        "eul": Recipe(
            objective=EUL,
            settings={
                "schedule": "alternate",
                "learning_rate": 5e-5,
                "warmup": 0.06,
                "epochs": 5,
                "depth": (0.0, 1.0),
                "gold_only": False,
                "lm_on_text": True,
                "own_answers": False,
                "forget_target": None,
            },
        ),
        # Of a gold string all tokens must not fall: one is enough.
        "tnpo": Recipe(objective=TNPO, settings={"gold_only": False}),
        # Its answers stay as likely as they were before they were learnt.
        "bad-teacher": Recipe(objective=BAD_TEACHER, settings={"gold_only": False, "forget_target": None}),
        "simnpo": Recipe(objective=SIMNPO),
        "grad-diff": Recipe(objective=GRAD_DIFF),
        "idk": Recipe(objective=IDK, settings={"gold_only": False, "forget_target": None}),  # its answers stay likely
        "rmu": Recipe(objective=RMU),
    }
)
