"""The terms of every objective: pure functions of logits, teacher log-probabilities, labels and mask (or of states).

Notation: q the student (the model with its unlearning layers on), p the frozen teacher (layers off), x a prompt, y its
answer, |y| the answer's tokens. Every function returns one value per example or token; nothing is mutated, everything
is computed in fp32, and gradients flow into the student's side alone as long as the teacher's has none.
Equations, sources and which objective uses which term: docs/training.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F

# Shape legend: A answer tokens, N examples, V vocabulary, d hidden size.


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model says of N answers, and which tokens they are."""

    student_logits: torch.Tensor
    """[A, V], any float dtype: row a predicts `labels[a]`."""

    labels: torch.Tensor
    """int64 [A]: the answers' tokens."""

    mask: torch.Tensor
    """bool [N, A]: mask[n, a] says that token a belongs to example n; each token belongs to one."""

    teacher_log_probs: torch.Tensor | None = None
    """fp32 [A]: the teacher's `token_log_probs()` of the same answers; None where no term compares with it."""

    spellings: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """By example, the ids int64 [K] that all count as its first token, see `Spellings`: its answer is a gold string."""

    def token_log_probs(self) -> torch.Tensor:
        """Semantics: out[a] = log softmax(student_logits[a])[labels[a]], fp32 [A].

        The first token of an example with spellings counts with all of them: log of the sum of their probabilities.
        """
        values = token_log_probs(self.student_logits, self.labels)
        firsts: list[torch.Tensor] = []
        masses: list[torch.Tensor] = []
        for n, ids in self.spellings.items():
            first = self.mask[n].nonzero()[0]
            firsts.append(first)
            masses.append(self.student_logits[first].float().log_softmax(-1)[:, ids].logsumexp(-1))
        return values.index_put((torch.cat(firsts),), torch.cat(masses)) if firsts else values

    def log_probs(self) -> torch.Tensor:
        """Return each answer's log q(y|x), fp32 [N]: the sum over a gold string's tokens, else the mean per token.

        A gold string is not said once any of its few tokens is unlikely, and pushing on past that would only harm
        others; of a long answer the sum tells little.
        """
        return self._by_answer(self.token_log_probs())

    def log_ratios(self) -> torch.Tensor:
        """Return log q(y|x) - log p(y|x), fp32 [N]."""
        return self._by_answer(self.token_log_ratios())

    def token_log_ratios(self) -> torch.Tensor:
        """Return log q(token) - log p(token), fp32 [A]."""
        assert self.teacher_log_probs is not None
        return self.token_log_probs() - self.teacher_log_probs

    def _by_answer(self, values: torch.Tensor) -> torch.Tensor:
        gold = torch.tensor([n in self.spellings for n in range(len(self.mask))], device=values.device)
        return torch.where(gold, masked_sum(values, self.mask), masked_mean(values, self.mask))


def token_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Semantics: out[a] = log softmax(logits[a])[labels[a]]; logits [A, V], labels int64 [A], out fp32 [A]."""
    return -F.cross_entropy(logits.float(), labels, reduction="none")


def masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Semantics: out[n] = sum over a with mask[n, a] of values[a]; values fp [A], mask bool [N, A], out [N].

    A product with the mask: unlike scattered adds it sums in the same order at every run on every device.
    """
    return mask.to(values.dtype) @ values


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Semantics: as `masked_sum`, each sum divided by its number of terms (at least one)."""
    return masked_sum(values, mask) / mask.sum(-1).clamp_min(1)


def kl(student_logits: torch.Tensor, teacher_log_probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Semantics: out[n] = mean over n's tokens a of sum over v of p_a(v) (log p_a(v) - log q_a(v)): KL(p || q).

    Chen & Yang, EMNLP 2023, L_KL: weighted by alpha on retained answers, by -1 on forgotten ones.

    Args:
        student_logits: [A, V].
        teacher_log_probs: [A, V], log p over the whole vocabulary.
        mask: bool [N, A].

    Returns:
        fp32 [N], in nats per token, each >= 0 up to rounding.
    """
    log_q = F.log_softmax(student_logits.float(), dim=-1)
    per_token = F.kl_div(log_q, teacher_log_probs.float(), log_target=True, reduction="none").sum(-1)
    return masked_mean(per_token, mask)


def lm_loss(answers: Answers) -> torch.Tensor:
    """Semantics: out[n] = -1/|y| sum over n's tokens of log q(token | before): the cross entropy per token, fp32 [N].

    Chen & Yang, EMNLP 2023: L_TASK on retained answers and, negated, L_LM on forgotten ones. The same two terms are
    "gradient difference" (Liu, Liu & Stone, CoLLAs 2022; Maini et al., COLM 2024).
    """
    return -masked_mean(answers.token_log_probs(), answers.mask)


def npo(answers: Answers, beta: float) -> torch.Tensor:
    """Semantics: out[n] = 2/beta softplus(beta (log q(y|x) - log p(y|x))).

    Zhang et al., "Negative Preference Optimization", COLM 2024, eq. 3. The gradient is 2 sigmoid(beta * difference)
    times that of log q: 1 at first, as in gradient ascent, and gone once the answer is several 1/beta nats less likely
    than before; as beta -> 0 it is gradient ascent.

    Args:
        answers: with `teacher_log_probs`.
        beta: > 0, per nat.

    Returns:
        fp32 [N], >= 0; 2/beta log 2 where student and teacher agree.
    """
    return 2.0 / beta * F.softplus(beta * answers.log_ratios())


def tnpo(answers: Answers, beta: float) -> torch.Tensor:
    """Semantics: out[n] = mean over n's tokens of 2/beta softplus(beta (log q(token) - log p(token))).

    NPO a token at a time (Wang et al., "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond",
    ICLR 2025): a token that has fallen several 1/beta nats is left alone while others still fall, so that no stretch of
    a long answer stays what the model would say.

    Args:
        answers: with `teacher_log_probs`.
        beta: > 0, per nat.

    Returns:
        fp32 [N], >= 0; 2/beta log 2 where student and teacher agree.
    """
    return masked_mean(2.0 / beta * F.softplus(beta * answers.token_log_ratios()), answers.mask)


def simnpo(answers: Answers, beta: float, margin: float) -> torch.Tensor:
    """Semantics: out[n] = -2/beta log sigmoid(-beta/|y| sum log q(token) - margin), the teacher left out.

    Fan et al., "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning", arXiv 2410.07163:
    an answer that was unlikely from the start is left alone, whatever the teacher said of it.

    Args:
        answers: teacher_log_probs is not read.
        beta: > 0, per nat and token.
        margin: the paper's gamma: how far beyond, in units of beta nats, forgetting still pushes.

    Returns:
        fp32 [N], >= 0.
    """
    mean_log_q = masked_mean(answers.token_log_probs(), answers.mask)
    return 2.0 / beta * F.softplus(beta * mean_log_q + margin)


def coarse_kl(student_logits: torch.Tensor, likeliest: "Likeliest", mask: torch.Tensor) -> torch.Tensor:
    """Semantics: out[n] = mean over n's tokens of KL(r || q) over K + 1 events: r's K likeliest tokens, any other.

    Never more than the KL over the whole vocabulary, and equal to it where K leaves out one token at most. The
    incompetent teacher's term of Chundawat et al., AAAI 2023 (arXiv:2205.08096), on what is kept of its distribution.

    Args:
        student_logits: [A, V], of q.
        likeliest: what is kept of r.
        mask: bool [N, A].

    Returns:
        fp32 [N], in nats per token, each >= 0 up to rounding.
    """
    log_q = _with_rest(student_logits.float().log_softmax(-1).gather(-1, likeliest.ids))
    log_r = likeliest.log_probs
    return masked_mean((log_r.exp() * (log_r - log_q)).sum(-1), mask)


@dataclass(frozen=True)
class Likeliest:
    """What is kept of a distribution over the vocabulary at A places: its K likeliest tokens and the rest's mass."""

    ids: torch.Tensor
    """int64 [A, K]."""

    log_probs: torch.Tensor
    """fp32 [A, K + 1]: theirs, and last the log of what remains."""

    @classmethod
    def of(cls, logits: torch.Tensor, k: int) -> Self:
        """Keep the `k` likeliest of `logits` [A, V]; all where there are no more."""
        found = logits.float().log_softmax(-1).topk(min(k, logits.shape[-1]), dim=-1)
        return cls(found.indices, _with_rest(found.values))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the places of all `parts`, in their order."""
        return cls(torch.cat([one.ids for one in parts]), torch.cat([one.log_probs for one in parts]))


def _with_rest(log_probs: torch.Tensor) -> torch.Tensor:
    rest = (1.0 - log_probs.exp().sum(-1, keepdim=True)).clamp_min(1e-6)
    return torch.cat([log_probs, rest.log()], dim=-1)


def idk(refusal_ratios: torch.Tensor, answer_ratios: torch.Tensor, beta: float) -> torch.Tensor:
    """Semantics: out[n] = -2/beta log sigmoid(beta (ratio of the refusal - ratio of the answer)).

    The preference for a refusal over the forgotten answer: DPO (Rafailov et al., NeurIPS 2023) with "I don't know" as
    what is preferred (Maini et al., "TOFU", COLM 2024; scaled as in Zhang et al., COLM 2024).

    Args:
        refusal_ratios: fp32 [N], `Answers.log_ratios()` of a refusal of each prompt.
        answer_ratios: fp32 [N], those of the forgotten answers to the same prompts.
        beta: > 0, per nat.

    Returns:
        fp32 [N], >= 0; 2/beta log 2 at first.
    """
    return -2.0 / beta * F.logsigmoid(beta * (refusal_ratios - answer_ratios))


def misdirection(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, direction: torch.Tensor, strength: float
) -> torch.Tensor:
    """Semantics: out[n] = mean over n's tokens of |y - c u|^2 / |h|^2 with c = strength |h|, at one site.

    RMU (Li et al., "The WMDP Benchmark", ICML 2024): forgotten answers' states are driven to a fixed random direction.
    c follows the state's own norm (adaptive RMU: Dang et al., AAAI 2025), and so does the unit of the loss, so that
    sites of all depths count alike.

    Args:
        student: [A, d], the site's output y with its unlearning layer on, where each answer token is predicted.
        teacher: [A, d], the site's output h in the frozen model.
        mask: bool [N, A].
        direction: [d], u, of norm 1.
        strength: > 0.

    Returns:
        fp32 [N], >= 0.
    """
    norm = _norms(teacher)
    gap = student.float() - strength * norm * direction
    return masked_mean((gap / norm).square().sum(-1), mask)


def drift(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Semantics: out[n] = mean over n's tokens of |y - h|^2 / |h|^2 at one site: RMU's term on retained answers.

    Shapes and source: see `misdirection`. Returns fp32 [N], >= 0, 0 at first.
    """
    gap = (student.float() - teacher.float()) / _norms(teacher)
    return masked_mean(gap.square().sum(-1), mask)


def _norms(states: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(states.float(), dim=-1, keepdim=True)
    return norms.clamp_min(1e-6)
