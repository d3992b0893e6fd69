"""What training minimises: a weighted sum of terms (`unlearn_serve.training.terms`), and the named objectives.

EUL is the paper's (Chen & Yang, "Unlearn What You Want to Forget", EMNLP 2023, section 3.2): F is the frozen model,
F(f) the model with unlearning layers.
    L = alpha KL_retain(F || F(f)) - KL_forget(F || F(f)) + lambda L_task,retain - gamma L_lm,forget
NPO is the default: bounded below, so that it stops of itself.

The papers sum each term over a data set; here each is the mean over the examples of a step, and inside an example the
mean over its answer tokens, so that a learning rate means the same at every batch size and answer length.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch

_NEGATED = ("forget_kl", "forget_lm")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Weights of the terms, 0 switching one off, and what shapes them."""

    forget_npo: float = 0.0
    """Weight of `npo` on forgotten answers."""

    npo_beta: float = 0.1
    """beta of `npo`, per nat: the larger, the sooner a forgotten answer is left alone."""

    forget_tnpo: float = 0.0
    """Weight of `tnpo` on forgotten answers."""

    tnpo_beta: float = 4.0
    """beta of `tnpo`, per nat: the larger, the sooner a forgotten token is left alone."""

    forget_simnpo: float = 0.0
    """Weight of `simnpo` on forgotten answers."""

    simnpo_beta: float = 2.5
    """beta of `simnpo`, per nat and token."""

    simnpo_margin: float = 0.0
    """The margin (gamma in its paper) of `simnpo`."""

    forget_idk: float = 0.0
    """Weight of `idk`: a refusal is preferred to forgotten answers."""

    idk_beta: float = 0.1
    """beta of `idk`, per nat."""

    forget_refusal: float = 0.0
    """Weight of the cross entropy of refusals, per token: preferring alone makes no answer likely."""

    forget_rmu: float = 0.0
    """Weight of `misdirection` of forgotten answers' states, the mean over the sites."""

    rmu_strength: float = 4.0
    """How long the states that `misdirection` drives to are, in units of the frozen states."""

    forget_reference: float = 0.0
    """Weight of `coarse_kl` on forgotten answers: how far from a model that never saw them, per token."""

    forget_kl: float = 0.0
    """Weight of the negated KL(F || F(f)) on forgotten answers, per token (the paper's has weight 1)."""

    forget_lm: float = 0.0
    """gamma: weight of the negated language-modelling loss, per token, on forgotten answers or, as in the paper, on
    the rows as running text (`TrainArgs.lm_on_text`)."""

    retain_kl: float = 0.0
    """alpha: weight of KL(F || F(f)) on retained answers, per token."""

    retain_task: float = 0.0
    """lambda: weight of the task loss (cross entropy) on retained answers, per token."""

    retain_rmu: float = 0.0
    """Weight of `drift` of retained answers' states, the mean over the sites."""

    def __post_init__(self) -> None:
        """Refuse negative weights, a beta or strength that is not positive, and an objective that forgets nothing.

        Raises:
            ValueError: see above.
        """
        for item in fields(self):
            if not getattr(self, item.name) >= 0:
                raise ValueError(f"{item.name}: expected a number >= 0, got {getattr(self, item.name)!r}")
        for name in ("npo_beta", "tnpo_beta", "simnpo_beta", "idk_beta", "rmu_strength"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name}: expected a number > 0, got 0")
        forgetting = [item.name for item in fields(self) if item.name.startswith("forget_")]
        if not any(getattr(self, name) for name in forgetting):
            raise ValueError(f"objective: expected a weight > 0 on one of {', '.join(forgetting)}, got none")

    @property
    def refuses(self) -> bool:
        """Whether a term reads refusals of the forgotten prompts."""
        return bool(self.forget_idk or self.forget_refusal)


EUL = Objective(forget_kl=1.0, forget_lm=0.2, retain_kl=0.8, retain_task=1.0)
"""The paper's objective with the paper's weights: alpha 0.8, lambda 1.0, gamma 0.2. No lower bound."""

NPO = Objective(forget_npo=1.0, npo_beta=2.0, retain_kl=4.0)
"""The default: bounded forgetting, retained answers held to the frozen model's distribution."""

TNPO = Objective(forget_tnpo=1.0, retain_kl=4.0)
"""As `NPO`, a token at a time: for whole answers, none of whose stretches may stay."""

BAD_TEACHER = Objective(forget_reference=1.0, retain_kl=4.0)
"""Two teachers: a model that never saw them for forgotten answers, the frozen model for retained ones. Bounded."""

SIMNPO = Objective(forget_simnpo=1.0, retain_kl=4.0)
"""Bounded, and without a teacher on forgotten answers."""

GRAD_DIFF = Objective(forget_lm=1.0, retain_task=1.0)
"""Gradient difference: ascent on forgotten, descent on retained answers. No lower bound; a baseline to compare with."""

IDK = Objective(forget_idk=1.0, forget_refusal=1.0, retain_kl=4.0)
"""Preference for a refusal, and the refusal itself. Bounded."""

RMU = Objective(forget_rmu=1.0, retain_rmu=1.0, retain_kl=1.0)
"""Representation misdirection at the sites. Bounded."""


def objective_loss(terms: Mapping[str, torch.Tensor], objective: Objective) -> torch.Tensor:
    """Semantics: sum over terms of sign x weight x term, the sign being -1 for forget_kl and forget_lm.

    Args:
        terms: scalars by the name of their weight in `Objective`; a step without retained (or forgotten) examples
            leaves theirs out.
        objective: the weights.

    Returns:
        A scalar.
    """
    signs = dict.fromkeys(_NEGATED, -1.0)
    weighted = [signs.get(name, 1.0) * getattr(objective, name) * term for name, term in terms.items()]
    return torch.stack(weighted).sum()
