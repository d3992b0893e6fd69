"""What a method costs, counted from outside: a method cannot forget to count its teacher or its checks."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.paper.task import Accounting, Budget
from unlearn_serve.data import IGNORED


class Meter:
    """Counts every pass of every transformers model, and every optimiser step, while it is entered.

    Tokens are those given to a pass, without padding; an encoder-decoder model's are those of both sides. A pass that
    takes up what was computed earlier (the trainer of unlearning layers keeps the output of the blocks below the first
    layer) counts in full: `seconds` shows what that saves. A pass is a backward one once a gradient reaches its logits.
    """

    def __init__(self) -> None:
        self.optimizer_steps = 0
        self.tokens_forward = 0
        self.tokens_backward = 0
        self._trainable = 0
        self._began: float | None = None
        self._ended: float | None = None
        self._peak: int | None = None
        self._tells_peak = False
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        """Start to listen; the clock itself starts with the first pass of a model."""
        self._tells_peak = _forget_peak_rss()
        self._handles = [
            register_module_forward_pre_hook(self._before_pass),
            register_module_forward_hook(self._after_pass, with_kwargs=True),
            register_optimizer_step_post_hook(self._after_step),
        ]
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Stop the clock."""
        self._ended = time.perf_counter()
        self._peak = _peak_rss() if self._tells_peak else None
        for handle in self._handles:
            handle.remove()

    @property
    def seconds(self) -> float:
        """Wall time since the first pass, until the meter was left."""
        if self._began is None:
            return 0.0
        return (self._ended or time.perf_counter()) - self._began

    def exhausts(self, budget: Budget) -> bool:
        """Tell whether a cap is reached."""
        return (
            (budget.steps is not None and self.optimizer_steps >= budget.steps)
            or (budget.tokens is not None and self.tokens_forward >= budget.tokens)
            or (budget.seconds is not None and self.seconds >= budget.seconds)
        )

    def accounting(
        self, *, stored_bytes: int, served_bytes: int, trainable_parameters: int | None = None
    ) -> Accounting:
        """Return what was counted.

        Args:
            stored_bytes: see `Accounting`.
            served_bytes: see `Accounting`.
            trainable_parameters: None takes what the largest optimiser was given.
        """
        return Accounting(
            seconds=round(self.seconds, 3),
            optimizer_steps=self.optimizer_steps,
            tokens_forward=self.tokens_forward,
            tokens_backward=self.tokens_backward,
            trainable_parameters=self._trainable if trainable_parameters is None else trainable_parameters,
            stored_bytes=stored_bytes,
            served_bytes=served_bytes,
            peak_rss_bytes=self._peak,
        )

    def _before_pass(self, module: nn.Module, _: Any) -> None:
        if self._began is None and _is_whole_model(module):
            self._began = time.perf_counter()

    def _after_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if not _is_whole_model(module):
            return
        tokens = _tokens(args, kwargs)
        self.tokens_forward += tokens
        if out.logits.requires_grad:

            def reached(_: torch.Tensor) -> None:
                self.tokens_backward += tokens

            out.logits.register_hook(reached)

    def _after_step(self, optimizer: Optimizer, _: Any, __: Any) -> None:
        self.optimizer_steps += 1
        given = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        self._trainable = max(self._trainable, given)


class WithinBudget(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
    """Ends a Trainer's run once a cap is reached."""

    def __init__(self, meter: Meter, budget: Budget) -> None:
        self._meter = meter
        self._budget = budget

    def on_step_end(
        self, _: TrainingArguments, __: TrainerState, control: TrainerControl, **___: Any
    ) -> TrainerControl:
        """Look after every optimiser step."""
        if self._meter.exhausts(self._budget):
            control.should_training_stop = True
        return control


def _is_whole_model(module: nn.Module) -> bool:
    """A model with its head (transformers names those `...For...`), or PEFT's tuner, which runs one unseen by hooks."""
    return isinstance(module, BaseTuner) or (isinstance(module, PreTrainedModel) and "For" in type(module).__name__)


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    ids = args[0] if args else kwargs.get("input_ids")
    mask, labels = kwargs.get("attention_mask"), kwargs.get("labels")
    count = 0
    if ids is not None:
        # A mask of two dimensions covers what a cache holds too; one of four tells packed examples apart: no padding.
        padded = mask is not None and mask.dim() == 2
        count = int(mask[:, -ids.shape[1] :].sum()) if padded else ids.numel()
    if kwargs.get("decoder_input_ids") is not None:
        count += kwargs["decoder_input_ids"].numel()
    elif labels is not None:  # an encoder-decoder model's other side
        count += int((labels != IGNORED).sum())
    return count


def _forget_peak_rss() -> bool:
    """Begin the process's high-water mark anew, and tell whether that was possible: on Linux, where it is allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_rss() -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
