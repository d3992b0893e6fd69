"""What training minimises, as pure functions of logits.

Two objectives over the same terms, each term with its own weight, 0 switching it off:

- EUL, the paper's (Chen & Yang, "Unlearn What You Want to Forget", EMNLP 2023, section 3.2): F is the frozen model,
  F(f) the model with unlearning layers.
      L = alpha KL_retain(F || F(f)) - KL_forget(F || F(f)) + lambda L_task,retain - gamma L_lm,forget
  Its two forgetting terms have no lower bound: stop early.
- NPO (Zhang et al., "Negative Preference Optimization", COLM 2024, eq. 3), bounded below by 0, the default:
      L = 2/beta softplus(beta (log p_F(f)(y|x) - log p_F(y|x))) on forgotten, + KL and task loss on retained answers.

The paper sums each term over its data set; here each is the mean over the examples of a step, and inside an example
the mean over its answer tokens, so that a learning rate means the same at every batch size and answer length.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

# Shape legend: A answer tokens of a step, V vocabulary, N examples.


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Weights of the terms."""

    forget_npo: float = 0.0
    """Weight of `npo` on forgotten answers."""

    npo_beta: float = 0.1
    """beta of `npo`, per nat: the larger, the sooner a forgotten answer is left alone."""

    forget_kl: float = 0.0
    """Weight of the negated KL(F || F(f)) on forgotten answers, per token (the paper's has weight 1)."""

    forget_lm: float = 0.0
    """gamma: weight of the negated language-modelling loss on forgotten answers, per token."""

    retain_kl: float = 0.0
    """alpha: weight of KL(F || F(f)) on retained answers, per token."""

    retain_task: float = 0.0
    """lambda: weight of the task loss (cross entropy) on retained answers, per token."""

    def __post_init__(self) -> None:
        """Refuse negative weights, a beta that is not positive, and an objective that forgets nothing.

        Raises:
            ValueError: see above.
        """
        for item in fields(self):
            if not getattr(self, item.name) >= 0:
                raise ValueError(f"{item.name}: expected a number >= 0, got {getattr(self, item.name)!r}")
        if self.npo_beta == 0:
            raise ValueError("npo_beta: expected a number > 0, got 0")
        if not (self.forget_npo or self.forget_kl or self.forget_lm):
            raise ValueError("objective: expected a weight > 0 on forget_npo, forget_kl or forget_lm, got none")


EUL = Objective(forget_kl=1.0, forget_lm=0.2, retain_kl=0.8, retain_task=1.0)
"""The paper's objective with the paper's weights: alpha 0.8, lambda 1.0, gamma 0.2."""

NPO = Objective(forget_npo=1.0, npo_beta=2.0, retain_kl=4.0)
"""The default: bounded forgetting, retained answers held to the frozen model's distribution."""


def token_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Semantics: out[a] = log softmax(logits[a])[labels[a]].

    Args:
        logits: [A, V], any float dtype; computed in fp32.
        labels: int64 [A].

    Returns:
        fp32 [A].
    """
    return -F.cross_entropy(logits.float(), labels, reduction="none")


def kl_divergence(teacher_logits: torch.Tensor, student_logits: torch.Tensor) -> torch.Tensor:
    """Semantics: out[a] = sum over v of p_a(v) (log p_a(v) - log q_a(v)), p = softmax(teacher), q = softmax(student).

    Args:
        teacher_logits: [A, V], any float dtype; computed in fp32.
        student_logits: [A, V]; gradients flow into this one only, if the teacher's has none.

    Returns:
        fp32 [A], each >= 0 up to rounding.
    """
    log_p = F.log_softmax(teacher_logits.float(), dim=-1)
    log_q = F.log_softmax(student_logits.float(), dim=-1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)


def npo(log_p_student: torch.Tensor, log_p_teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """Semantics: out[n] = 2/beta softplus(beta (log_p_student[n] - log_p_teacher[n])).

    The log-probabilities are those of answers, not of single tokens: summed over the tokens of a gold string, averaged
    over those of a long answer (as SimNPO does), see `FrozenOutputs.answer_log_probs`.
    The gradient is 2 sigmoid(beta * difference) times that of log_p_student: 1 at first, as in gradient ascent, and
    gone once the answer is several 1/beta nats less likely than before; as beta -> 0 it is gradient ascent.

    Args:
        log_p_student: fp32 [N].
        log_p_teacher: fp32 [N], no gradient.
        beta: > 0, per nat.

    Returns:
        fp32 [N], >= 0; 2/beta log 2 where student and teacher agree.
    """
    return 2.0 / beta * F.softplus(beta * (log_p_student - log_p_teacher))


def sum_by_owner(values: torch.Tensor, owner: torch.Tensor, examples: int) -> torch.Tensor:
    """Semantics: out[n] = sum of values[a] over a with owner[a] == n; values fp [A], owner int64 [A], out [examples].

    A product with the one-hot owners: unlike scattered adds it sums in the same order at every run on every device.
    """
    return F.one_hot(owner, examples).to(values.dtype).T @ values


def mean_by_owner(values: torch.Tensor, owner: torch.Tensor, examples: int) -> torch.Tensor:
    """Semantics: as `sum_by_owner`, each sum divided by its number of terms (at least one)."""
    counts = torch.bincount(owner, minlength=examples)
    return sum_by_owner(values, owner, examples) / counts.clamp_min(1)


def objective_loss(terms: dict[str, torch.Tensor], objective: Objective) -> torch.Tensor:
    """Semantics: sum over terms of sign x weight x term, the sign being -1 for forget_kl and forget_lm.

    Args:
        terms: scalars by the name of their weight in `Objective`; a step without retained (or forgotten) examples
            leaves theirs out.
        objective: the weights.

    Returns:
        A scalar.
    """
    signs = {"forget_kl": -1.0, "forget_lm": -1.0}
    weighted = [signs.get(name, 1.0) * getattr(objective, name) * term for name, term in terms.items()]
    return torch.stack(weighted).sum()
