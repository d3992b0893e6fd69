"""The loss of a step on transformers' `Trainer`: accelerate, several devices and checkpoints come with it."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from unlearn_serve.errors import TrainingError
from unlearn_serve.layers import save_adapter
from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.objectives import Objective, objective_loss
from unlearn_serve.training.plan import StepPlan
from unlearn_serve.training.rows import Row
from unlearn_serve.training.site_states import SiteStates
from unlearn_serve.training.terms import (
    Answers,
    Likeliest,
    coarse_kl,
    drift,
    idk,
    kl,
    lm_loss,
    misdirection,
    npo,
    simnpo,
    tnpo,
)

WATCHED = ("forget_probability", "retain_probability")
"""Levels that a step yields beside the objective's terms, at no further cost."""


class PlannedSteps(Dataset[StepPlan]):
    """The plans of all micro-steps as a data set: one "example" is one micro-step of one device."""

    def __init__(self, plans: Sequence[StepPlan]) -> None:
        """Keep `plans` in their order."""
        self._plans = plans

    def __len__(self) -> int:
        return len(self._plans)

    def __getitem__(self, index: int) -> StepPlan:
        return self._plans[index]


class UnlearnTrainer(Trainer):  # type: ignore[misc]  # transformers is not followed by mypy
    """Trains the layers of a PEFT model on planned steps.

    The base stays in evaluation mode: dropout in frozen blocks would make the student differ from its teacher for no
    reason, and make what is kept of the frozen blocks wrong.
    """

    def __init__(
        self,
        *,
        model: PeftModel,
        args: TrainingArguments,
        plans: Sequence[StepPlan],
        outputs: FrozenOutputs,
        objective: Objective,
        refusals: Mapping[int, int],
        texts: Mapping[int, int],
        references: Mapping[int, Likeliest],
        callbacks: Sequence[TrainerCallback],
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Prepare training.

        Args:
            model: with one trainable adapter.
            args: transformers' settings.
            plans: micro-steps in order.
            outputs: filled at the first step.
            objective: what to minimise.
            refusals: by forgotten example, the example that refuses its prompt.
            texts: by forgotten example, the same row as running text, which `forget_lm` then reads.
            references: by forgotten example, what a model that never saw it expects there.
            callbacks: transformers callbacks.
            advance: called while `outputs` is filled with the number of examples done.
        """
        super().__init__(
            model=model,
            args=args,
            train_dataset=PlannedSteps(plans),
            data_collator=_only_plan,
            callbacks=list(callbacks),
        )
        self.outputs = outputs
        self.objective = objective
        self.last_terms: dict[str, float] = {}
        self._refusals = refusals
        self._texts = texts
        self._references = references
        self._states = SiteStates(model, seed=args.seed)
        self._advance = advance
        self._filled = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, StepPlan],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002  # a step normalises by examples
    ) -> Any:
        """Return the step's loss; leaves its terms, averaged over processes, in `last_terms`.

        Raises:
            TrainingError: the loss is not finite.
        """
        model.eval()
        if not self._filled:
            self.outputs.fill(model, self._advance)
            self._filled = True
        plan = inputs["plan"]
        terms = {**self._forget_terms(model, plan.forget), **self._retain_terms(model, plan.retain)}
        loss = objective_loss({name: term for name, term in terms.items() if name not in WATCHED}, self.objective)
        values = torch.stack([loss.detach(), *(term.detach() for term in terms.values())])
        means = self.accelerator.reduce(values, reduction="mean").tolist()
        if not math.isfinite(means[0]):
            raise TrainingError(
                f"step {self.state.global_step + 1}: expected a finite loss, got {means[0]}; lower learning_rate"
            )
        self.last_terms = dict(zip(terms, means[1:], strict=True))
        return (loss, terms) if return_outputs else loss

    def _forget_terms(self, model: nn.Module, members: Sequence[int]) -> dict[str, torch.Tensor]:
        weights = self.objective
        found: dict[str, list[torch.Tensor]] = defaultdict(list)
        ratios: list[torch.Tensor] = []
        for row in self.outputs.rows(members) if members else ():
            logits, student, teacher = self._pass(model, row, with_states=bool(weights.forget_rmu))
            answers = self.outputs.answers(row, logits)
            if weights.forget_npo:
                found["forget_npo"].append(npo(answers, weights.npo_beta))
            if weights.forget_tnpo:
                found["forget_tnpo"].append(tnpo(answers, weights.tnpo_beta))
            if weights.forget_reference:
                reference = Likeliest.joined([self._references[member] for member in row.members])
                found["forget_reference"].append(coarse_kl(logits, reference, row.mask))
            if weights.forget_simnpo:
                found["forget_simnpo"].append(simnpo(answers, weights.simnpo_beta, weights.simnpo_margin))
            if weights.forget_idk:
                ratios.append(answers.log_ratios())
            if weights.forget_rmu:
                per_site = [
                    misdirection(student[s], teacher[s], row.mask, self._states.direction(s), weights.rmu_strength)
                    for s in student
                ]
                found["forget_rmu"].append(torch.stack(per_site).mean(0))
            if weights.forget_kl:
                found["forget_kl"].append(self._kl(model, row, logits))
            if weights.forget_lm and not self._texts:
                found["forget_lm"].append(lm_loss(answers))
            found["forget_probability"].append(answers.log_probs().exp())
        if weights.forget_lm and self._texts and members:
            found["forget_lm"].extend(lm_loss(one) for one in self._answers_to(model, members, self._texts))
        if weights.refuses and members:
            refusals = self._answers_to(model, members, self._refusals)
            if weights.forget_idk:
                refused = torch.cat([one.log_ratios() for one in refusals])
                found["forget_idk"].append(idk(refused, torch.cat(ratios), weights.idk_beta))
            if weights.forget_refusal:
                found["forget_refusal"].extend(lm_loss(one) for one in refusals)
        return {name: torch.cat(values).mean() for name, values in found.items()}

    def _retain_terms(self, model: nn.Module, members: Sequence[int]) -> dict[str, torch.Tensor]:
        weights = self.objective
        found: dict[str, list[torch.Tensor]] = defaultdict(list)
        for row in self.outputs.rows(members) if members else ():
            logits, student, teacher = self._pass(model, row, with_states=bool(weights.retain_rmu))
            answers = self.outputs.answers(row, logits)
            if weights.retain_kl:
                found["retain_kl"].append(self._kl(model, row, logits))
            if weights.retain_task:
                found["retain_task"].append(lm_loss(answers))
            if weights.retain_rmu:
                per_site = [drift(student[s], teacher[s], row.mask) for s in student]
                found["retain_rmu"].append(torch.stack(per_site).mean(0))
            found["retain_probability"].append(answers.log_probs().exp())
        return {name: torch.cat(values).mean() for name, values in found.items()}

    def _answers_to(self, model: nn.Module, members: Sequence[int], others: Mapping[int, int]) -> list[Answers]:
        """The student's answers to the examples that stand for `members` in `others`, by rows."""
        rows = self.outputs.rows([others[member] for member in members])
        return [self.outputs.answers(row, self.outputs.student_logits(model, row)) for row in rows]

    def _pass(
        self, model: nn.Module, row: Row, *, with_states: bool
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor], dict[int, torch.Tensor]]:
        """The student's logits [A, V] and, by block, the states [A, d] of student and teacher (one more pass)."""
        if not with_states:
            return self.outputs.student_logits(model, row), {}, {}
        with torch.no_grad(), self.model.disable_adapter(), self._states.record(row.predictors) as teacher:
            self.outputs.student_logits(model, row)
        with self._states.record(row.predictors) as student:
            logits = self.outputs.student_logits(model, row)
        return logits, student, teacher

    def _kl(self, model: nn.Module, row: Row, logits: torch.Tensor) -> torch.Tensor:
        return kl(logits, self.outputs.teacher_logits(model, row).float().log_softmax(-1), row.mask)

    def _get_train_sampler(self, train_dataset: Dataset[StepPlan] | None = None) -> SequentialSampler:
        return SequentialSampler(cast(PlannedSteps, train_dataset or self.train_dataset))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        # The adapter alone: no model card, no question to a hub about the base model, no pickled arguments.
        model = self.accelerator.unwrap_model(self.model)
        save_adapter(model, Path(output_dir or self.args.output_dir), state_dict=state_dict)

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Return 0: transformers' estimate counts whole models over whole batches, which is not what runs here."""
        return 0


def _only_plan(items: list[StepPlan]) -> dict[str, StepPlan]:
    (plan,) = items
    return {"plan": plan}
