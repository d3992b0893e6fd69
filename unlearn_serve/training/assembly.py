"""The pieces of a training run: settings, blocks, rows, and the trainer over them with what stops it."""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainingArguments

from unlearn_serve.data import Example
from unlearn_serve.data.forms import Form
from unlearn_serve.errors import TrainingError
from unlearn_serve.training.answers import own_answers
from unlearn_serve.training.args import TrainArgs
from unlearn_serve.training.callbacks import LOG_NAME, LogSteps, StopWhenForgotten, TrainingLog
from unlearn_serve.training.examples import TrainingSet, build_training_set
from unlearn_serve.training.forms import build_whole_set
from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.frozen_cache import FrozenCache
from unlearn_serve.training.landing import Landing
from unlearn_serve.training.levels import Target, measure
from unlearn_serve.training.never_saw import reference_answers
from unlearn_serve.training.plan import plan_steps, steps_of_epochs
from unlearn_serve.training.texts import with_texts
from unlearn_serve.training.trainer import UnlearnTrainer

_UNSPLIT = 2**31

logger = logging.getLogger(__name__)


def training_arguments(args: TrainArgs, output_dir: Path) -> TrainingArguments:
    """The Trainer's settings; optimiser checkpoints go into `output_dir`."""
    cpu_processes = 0 if torch.accelerator.is_available() else int(os.environ.get("WORLD_SIZE", "1"))
    return TrainingArguments(
        output_dir=str(output_dir),
        max_steps=args.max_steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=args.gradient_accumulation,
        optim="adamw_torch",
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        lr_scheduler_type="linear",
        warmup_steps=warmup_steps(args),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no" if args.save_steps is None else "steps",
        save_steps=args.save_steps or 1,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        # Told so, several CPU processes form a group as several GPUs do; else each would train by itself.
        use_cpu=cpu_processes > 0,
        ddp_backend="gloo" if cpu_processes > 1 else None,
        seed=args.seed,
    )


def warmup_steps(args: TrainArgs) -> int:
    """Optimiser steps in which the learning rate climbs."""
    return math.ceil(args.warmup * args.max_steps)


def with_steps(args: TrainArgs, examples: TrainingSet, *, processes: int = 1) -> TrainArgs:
    """Put a number of optimiser steps in place of epochs."""
    if args.epochs is None:
        return args
    micro_steps = steps_of_epochs(
        len(examples.forget),
        len(examples.retain),
        schedule=args.schedule,
        forget_batch=args.forget_batch,
        retain_batch=args.retain_batch,
        epochs=args.epochs,
    )
    return replace(args, max_steps=math.ceil(micro_steps / (args.gradient_accumulation * processes)))


def chosen_blocks(args: TrainArgs, present: Sequence[int], *, two_stacks: bool) -> list[int]:
    """Those of the blocks `present` that `args.blocks` or `args.depth` mean; all of two stacks.

    Raises:
        TrainingError: there are none, or not these.
    """
    if two_stacks and args.blocks is None:
        return list(present)
    if args.blocks is None:
        first, last = (round(share * len(present)) for share in args.depth)
        chosen = list(present[first:last])
        if not chosen:
            raise TrainingError(f"depth: expected a range that holds a block of {len(present)}, got {args.depth}")
        return chosen
    if not args.blocks or not set(args.blocks) <= set(present):
        raise TrainingError(f"blocks: expected some of {present[0]}..{present[-1]}, got {list(args.blocks)}")
    return sorted(set(args.blocks))


def build_examples(
    args: TrainArgs,
    base: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    forget: Sequence[Example],
    retain: Sequence[Example],
    progress: Progress,
) -> TrainingSet:
    """Encode the rows; where `args` ask for it, with the base's own answers and with forgotten rows as texts."""
    if form == "decoder":
        examples = _decoder_examples(args, base, tokenizer, forget, retain, progress)
    else:
        examples = build_whole_set(forget, retain, base, tokenizer, form=form, max_length=args.max_length)
    if not (args.lm_on_text and args.objective.forget_lm):
        return examples
    return with_texts(examples, tokenizer, two_stacks=form == "seq2seq", seed=args.seed)


def _decoder_examples(
    args: TrainArgs,
    base: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Example],
    retain: Sequence[Example],
    progress: Progress,
) -> TrainingSet:
    task = progress.add_task("own answers", total=len(forget) + len(retain), visible=args.own_answers)

    def said(examples: Sequence[Example]) -> Sequence[Example]:
        limit = args.own_answer_tokens
        answers = own_answers(
            base, tokenizer, examples, max_new_tokens=limit, advance=lambda n: progress.advance(task, n)
        )
        # Equal prompts are answered once, so the count of prompts may fall short of the count of rows.
        progress.update(task, completed=len(forget) + (len(retain) if examples is retain else 0))
        return answers

    return build_training_set(
        forget,
        retain,
        tokenizer,
        max_length=args.max_length,
        gold_only=args.gold_only,
        said=said if args.own_answers else lambda _: (),
        said_tokens=args.own_answer_tokens,
        refusal=args.refusal if args.objective.refuses else None,
    )


def build_trainer(
    args: TrainArgs,
    settings: TrainingArguments,
    model: PeftModel,
    examples: TrainingSet,
    *,
    first_block: int,
    progress: Progress,
    form: Form = "decoder",
    cache: FrozenCache | None = None,
    checkpoint: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[UnlearnTrainer, StopWhenForgotten | None]:
    """Return a trainer of what asks for gradients in `model`, and what will stop it; makes `args.out`, with the log.

    Args:
        args: with a number of steps, and a target where one is to stop it.
        settings: the Trainer's.
        model: the base with something trainable that PEFT can switch off.
        examples: the rows.
        first_block: the first block that anything trainable is in; what lies before is computed once.
        progress: gets a line for the frozen model and one for the steps.
        form: of the model.
        cache: of the frozen model's outputs on retained rows.
        checkpoint: folder of the optimiser checkpoint that is gone on from.
        callbacks: to run after this package's own.
    """
    if args.freeze_down:
        for name, weight in model.named_parameters():
            weight.requires_grad_(weight.requires_grad and "lora_A" not in name)
    plans_per_step = args.gradient_accumulation * settings.world_size
    plans = plan_steps(
        examples.forget,
        examples.retain,
        schedule=args.schedule,
        forget_batch=args.forget_batch,
        retain_batch=args.retain_batch,
        steps=args.max_steps * plans_per_step,
        seed=args.seed,
    )
    kl_on = [*(examples.forget if args.objective.forget_kl else ()), *examples.retain]
    outputs = FrozenOutputs(
        model,
        examples.encoded,
        with_logits=kl_on,
        first_block=first_block,
        form=form,
        # Processes must run the same number of passes where they gather weights together: a row each then.
        row_tokens=args.row_tokens if settings.world_size == 1 else _UNSPLIT,
        cache_bytes=args.cache_mb * 2**20,
        beginnings=examples.beginnings,
        cache=cache,
        rows=examples.rows,
    )
    first_step = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    args.out.mkdir(parents=True, exist_ok=True)
    log = TrainingLog(args.out / LOG_NAME, first_step=first_step, enabled=settings.process_index == 0)
    steps = LogSteps(log, progress, args.max_steps)
    own: list[LogSteps | StopWhenForgotten] = [steps]
    stop = None
    if args.forget_target is not None:
        stop = StopWhenForgotten(
            log,
            plans,
            plans_per_step=plans_per_step,
            forget=examples.forget,
            retain=examples.retain[: args.check_examples],
            target=Target(
                probability=args.forget_target,
                extraction=args.extraction_target,
                retain_tolerance=args.retain_tolerance,
            ),
            lands=args.lands,
        )
        own.append(stop)
    task = progress.add_task("frozen model", total=len(examples.encoded))
    trainer = UnlearnTrainer(
        model=model,
        args=settings,
        plans=plans,
        outputs=outputs,
        objective=args.objective,
        refusals=examples.refusals,
        texts=examples.texts,
        references=reference_answers(args, model, examples) if args.reference else {},
        callbacks=[*own, *callbacks],
        advance=lambda n: progress.advance(task, n),
    )
    trainer.remove_callback(PrinterCallback)  # the log and the bar say it
    if trainer.is_fsdp_enabled:
        outputs.replays = False  # sharded blocks must all run: skipping one would skip its gathering
    for callback in own:
        callback.trainer = trainer
    return trainer, stop


def end(args: TrainArgs, trainer: UnlearnTrainer, examples: TrainingSet, stop: StopWhenForgotten | None) -> Landing:
    """Return where training ended; logs a warning where that is short of its target."""
    if stop is not None and stop.reached is not None:
        return stop.reached
    levels = measure(trainer.outputs, trainer.model_wrapped, examples.forget, examples.retain[: args.check_examples])
    if args.forget_target is not None:
        logger.warning(
            "training ended after %d steps short of its target: forget probability %.4f (target %.4f), "
            "forget extraction %.3f (target %s), retained KL %.4f (tolerance %.4f); "
            "raise max_steps or learning_rate, or evaluate whether this suffices",
            trainer.state.global_step,
            levels.forget_probability,
            args.forget_target,
            levels.forget_extraction,
            "none" if args.extraction_target is None else f"{args.extraction_target:.3f}",
            levels.retain_kl,
            args.retain_tolerance,
        )
    return Landing(1.0, levels)
