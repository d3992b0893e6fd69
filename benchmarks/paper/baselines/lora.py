"""LoRA with the product's objective: what a user would pick instead of unlearning layers.

Hu et al., "LoRA", ICLR 2022; the library is PEFT. Base, data, objective, schedule, rank and point to stop at are those
of `eul-bounded`, through the product's own loss; only where the two maps sit differs, and that nothing stands between
them:

    W x  ->  W x + alpha/r B A x        A: [r, in], B: [out, r], B = 0 at first, alpha = r
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PrinterCallback, TrainingArguments, set_seed

from benchmarks.paper.baselines.meter import Meter, WithinBudget
from benchmarks.paper.baselines.models import (
    ffn_output_maps,
    fresh_folder,
    load_original,
    load_tokenizer,
    weight_bytes,
)
from benchmarks.paper.baselines.product import json_settings, train_args
from benchmarks.paper.task import Budget, Task, Unlearned
from unlearn_serve.data import Example, read_examples
from unlearn_serve.layers import find_ffn_modules
from unlearn_serve.training import Name, TrainArgs
from unlearn_serve.training.answers import own_answers
from unlearn_serve.training.callbacks import LOG_NAME, LogSteps, StopWhenForgotten, TrainingLog, progress_bar
from unlearn_serve.training.examples import TrainingSet, build_training_set
from unlearn_serve.training.forms import build_whole_set
from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.levels import measure
from unlearn_serve.training.plan import plan_steps, steps_of_epochs
from unlearn_serve.training.trainer import UnlearnTrainer

Targets = Literal["down", "all-linear"]


@dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA on the maps that `targets` names in the blocks that `eul-bounded` would put its layers in."""

    name: str = "lora"

    recipe: Name = "npo"
    """Objective and its settings, as in `Eul`."""

    targets: Targets = "down"
    """down: the map that each feed-forward network ends in (`down_proj`), next to where an unlearning layer acts.
    all-linear: every linear map of those blocks, at several times the parameters."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainArgs` that outweigh the recipe's; `activation` means nothing here."""

    def run(self, task: Task, budget: Budget) -> Unlearned:
        """Train a LoRA adapter; see `Baseline.run`."""
        folder = fresh_folder(task, self.name)
        args = train_args(task, self.recipe, folder, self.settings)
        set_seed(task.seed)
        base = load_original(task)
        blocks = _blocks(args, base)
        with Meter() as meter:
            examples = _examples(args, task, base)
            set_seed(task.seed)  # generation may draw nothing, but A must not depend on it
            model = add_lora(base, blocks=blocks, rank=args.rank, targets=self.targets)
            stopped = _train(args, task, model, examples, min(blocks), WithinBudget(meter, budget))
        model.eval().save_pretrained(str(args.out))
        size = weight_bytes(args.out)
        found = Unlearned(
            method=self.name,
            model=model,
            accounting=meter.accounting(stored_bytes=size, served_bytes=size),
            checkpoint=task.original,
            adapter=args.out,
            details={"settings": json_settings(args), "targets": self.targets, "blocks": blocks, **stopped},
        )
        return found.written(folder)


def add_lora(base: nn.Module, *, blocks: list[int], rank: int, targets: Targets) -> PeftModel:
    """Put a fresh LoRA adapter on the maps of `blocks`; A is drawn from torch's generator."""
    if targets == "down":
        names = [path for block, (path, _) in ffn_output_maps(base).items() if block in blocks]
    else:
        inside = tuple(path.rpartition(".")[0] + "." for b, (path, _) in find_ffn_modules(base).items() if b in blocks)
        names = [p for p, module in base.named_modules() if isinstance(module, nn.Linear) and p.startswith(inside)]
    return get_peft_model(base, LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names))


def _blocks(args: TrainArgs, base: nn.Module) -> list[int]:
    """Those that the product's `depth` or `blocks` mean; all of an encoder-decoder's."""
    present = sorted(find_ffn_modules(base))
    if args.blocks is not None:
        return sorted(args.blocks)
    if base.config.is_encoder_decoder:  # type: ignore[union-attr]
        return present
    first, last = (round(share * len(present)) for share in args.depth)
    return present[first:last]


def _examples(args: TrainArgs, task: Task, base: Any) -> TrainingSet:
    tokenizer = load_tokenizer(task.original)
    # Read back as the product reads them: one path from rows to tokens for both.
    forget, retain = read_examples(args.forget), read_examples(args.retain) if args.retain else []
    if task.kind != "decoder":
        return build_whole_set(forget, retain, base, tokenizer, form=task.kind, max_length=args.max_length)

    def said(rows: list[Example]) -> list[Example]:
        return own_answers(base, tokenizer, rows, max_new_tokens=args.own_answer_tokens) if args.own_answers else []

    return build_training_set(
        forget,
        retain,
        tokenizer,
        max_length=args.max_length,
        gold_only=args.gold_only,
        said=said,
        said_tokens=args.own_answer_tokens,
        refusal=args.refusal if args.objective.refuses else None,
    )


def _train(
    args: TrainArgs, task: Task, model: PeftModel, examples: TrainingSet, first_block: int, within: WithinBudget
) -> dict[str, Any]:
    sets = {"schedule": args.schedule, "forget_batch": args.forget_batch, "retain_batch": args.retain_batch}
    steps = args.max_steps
    if args.epochs is not None:
        micro = steps_of_epochs(len(examples.forget), len(examples.retain), epochs=args.epochs, **sets)
        steps = math.ceil(micro / args.gradient_accumulation)
    plans = plan_steps(
        examples.forget, examples.retain, steps=steps * args.gradient_accumulation, seed=args.seed, **sets
    )
    outputs = FrozenOutputs(
        model,
        examples.encoded,
        with_logits=[*(examples.forget if args.objective.forget_kl else ()), *examples.retain],
        first_block=first_block,
        row_tokens=args.row_tokens,
        cache_bytes=args.cache_mb * 2**20,
        beginnings=examples.beginnings,
        form=task.kind,
    )
    args.out.mkdir(parents=True)
    log = TrainingLog(args.out / LOG_NAME)
    progress = progress_bar()
    progress.disable = True
    own: list[LogSteps | StopWhenForgotten] = [LogSteps(log, progress, steps)]
    stop = None
    if args.forget_target is not None:
        stop = StopWhenForgotten(
            log,
            plans,
            plans_per_step=args.gradient_accumulation,
            forget=examples.forget,
            retain=examples.retain[: args.check_examples],
            forget_target=args.forget_target,
            retain_tolerance=args.retain_tolerance,
        )
        own.append(stop)
    trainer = UnlearnTrainer(
        model=model,
        args=_training_arguments(args, steps),
        plans=plans,
        outputs=outputs,
        objective=args.objective,
        refusals=examples.refusals,
        callbacks=[within, *own],
    )
    trainer.remove_callback(PrinterCallback)
    for callback in own:
        callback.trainer = trainer
    trainer.train()
    reached = stop.reached if stop else None
    levels = reached or measure(outputs, trainer.model_wrapped, examples.forget, examples.retain[: args.check_examples])
    said = {f"reached_{name}": value for name, value in levels.as_dict().items()}
    return {"stopped_early": reached is not None, **said}


def _training_arguments(args: TrainArgs, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(args.out),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=args.gradient_accumulation,
        optim="adamw_torch",
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(args.warmup * steps),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=False,
        seed=args.seed,
    )
