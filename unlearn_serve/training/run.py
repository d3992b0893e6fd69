"""One training run, start to end."""

import logging
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from rich.progress import Progress
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from unlearn_serve.data import Example, read_examples
from unlearn_serve.errors import TrainingError
from unlearn_serve.format import MANIFEST_NAME, fingerprint_base_model, write_manifest
from unlearn_serve.fusion.grams import write_grams
from unlearn_serve.layers import adapter_blocks, add_adapter, find_ffn_modules, has_two_stacks
from unlearn_serve.training.answers import own_answers
from unlearn_serve.training.args import TrainArgs
from unlearn_serve.training.callbacks import LOG_NAME, LogSteps, StopWhenForgotten, TrainingLog, progress_bar
from unlearn_serve.training.examples import TrainingSet, build_training_set
from unlearn_serve.training.forms import Form, build_whole_set, load_model
from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.gram_hooks import record_grams
from unlearn_serve.training.levels import Levels, measure
from unlearn_serve.training.plan import plan_steps, steps_of_epochs
from unlearn_serve.training.record import build_manifest
from unlearn_serve.training.target import holdout_level, retrained_level
from unlearn_serve.training.trainer import UnlearnTrainer

CHECKPOINTS_NAME = "checkpoints"
_UNSPLIT = 2**31

logger = logging.getLogger(__name__)


def train(args: TrainArgs, *, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Train an adapter and return its directory, `args.out`.

    Writes adapter_config.json, adapter_model.safetensors, grams.safetensors (which must stay with the trainer),
    training_log.jsonl and, last, manifest.json: where that is, the adapter is whole. An interrupted run with
    `save_steps` continues from its last checkpoint when called again with the same arguments. Same arguments, data,
    versions and number of threads give the same adapter_model.safetensors, byte for byte.

    Runs on what accelerate finds: one process on CPU or GPU, or several under `accelerate launch`.

    Args:
        args: see `TrainArgs`.
        callbacks: transformers callbacks to run beside this package's own.

    Raises:
        TrainingError: `args.out` is taken, blocks do not exist, or the loss is not finite.
        DataError: a file or row is not what it should be.
        FormatError: the base model's folder is not a checkpoint.
        UnsupportedModel: the architecture has no feed-forward modules that could be found.
    """
    if (args.out / MANIFEST_NAME).exists():
        raise TrainingError(f"{args.out}: expected no finished adapter, got {MANIFEST_NAME}; choose another folder")
    fingerprint_base_model(args.model)
    forget, retain = read_examples(args.forget), read_examples(args.retain) if args.retain else []
    settings = _training_arguments(args)
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model, local_files_only=True)
    base, form = load_model(args)
    base.eval().to(settings.device)
    paths = {block: path for block, (path, _) in find_ffn_modules(base).items()}
    blocks = _blocks(args, sorted(paths), two_stacks=has_two_stacks(base))

    checkpoint = get_last_checkpoint(settings.output_dir) if Path(settings.output_dir).is_dir() else None
    with progress_bar() as progress:
        progress.disable = settings.process_index > 0
        if form == "decoder":
            examples = _examples(args, base, tokenizer, forget, retain, progress)
        else:
            examples = build_whole_set(forget, retain, base, tokenizer, form=form, max_length=args.max_length)
        model = add_adapter(base, rank=args.rank, activation=args.activation, blocks=blocks, seed=args.seed)
        args = _settled(args, model, tokenizer, examples, processes=settings.world_size)
        settings.max_steps, settings.warmup_steps = args.max_steps, _warmup_steps(args)
        trainer, stop = _trainer(args, settings, model, examples, form, checkpoint, progress, callbacks)
        trainer.train(resume_from_checkpoint=checkpoint)
        levels = _final_levels(args, trainer, examples, stop)
        task = progress.add_task("grams", total=len(examples.encoded))
        grams = record_grams(
            model,
            trainer.model_wrapped,
            trainer.outputs,
            range(len(examples.encoded)),
            sketch_rows=args.gram_sketch,
            advance=lambda n: progress.advance(task, n),
        )
    trainer.save_model(str(args.out))
    if trainer.is_world_process_zero():
        sites = {block: paths[block] for block in adapter_blocks(model)}
        write_grams(args.out, grams, sites)
        outcome: dict[str, float | int | str | bool] = {
            "steps": trainer.state.global_step,
            "stopped_early": stop is not None and stop.reached is not None,
            **levels.as_dict(),
        }
        write_manifest(args.out, build_manifest(args, args.out, sites, outcome, two_stacks=has_two_stacks(base)))
        shutil.rmtree(args.out / CHECKPOINTS_NAME, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return args.out


def _training_arguments(args: TrainArgs) -> TrainingArguments:
    cpu_processes = 0 if torch.accelerator.is_available() else int(os.environ.get("WORLD_SIZE", "1"))
    return TrainingArguments(
        output_dir=str(args.out / CHECKPOINTS_NAME),
        max_steps=args.max_steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=args.gradient_accumulation,
        optim="adamw_torch",
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        lr_scheduler_type="linear",
        warmup_steps=_warmup_steps(args),
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


def _warmup_steps(args: TrainArgs) -> int:
    return math.ceil(args.warmup * args.max_steps)


def _settled(
    args: TrainArgs, model: PeftModel, tokenizer: PreTrainedTokenizerBase, examples: TrainingSet, *, processes: int
) -> TrainArgs:
    """Put numbers in place of what depends on the data: steps for epochs, a target for a model that never saw them."""
    if args.epochs is not None:
        micro_steps = steps_of_epochs(
            len(examples.forget),
            len(examples.retain),
            schedule=args.schedule,
            forget_batch=args.forget_batch,
            retain_batch=args.retain_batch,
            epochs=args.epochs,
        )
        args = replace(args, max_steps=math.ceil(micro_steps / (args.gradient_accumulation * processes)))
    if args.holdout is not None:
        args = replace(args, forget_target=holdout_level(args, model, tokenizer))
    elif args.retrained is not None:
        args = replace(args, forget_target=retrained_level(args, model, examples))
    return args


def _blocks(args: TrainArgs, present: Sequence[int], *, two_stacks: bool) -> list[int]:
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


def _examples(
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


def _trainer(
    args: TrainArgs,
    settings: TrainingArguments,
    model: PeftModel,
    examples: TrainingSet,
    form: Form,
    checkpoint: str | None,
    progress: Progress,
    callbacks: Sequence[TrainerCallback],
) -> tuple[UnlearnTrainer, StopWhenForgotten | None]:
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
        first_block=min(adapter_blocks(model)),
        form=form,
        # Processes must run the same number of passes where they gather weights together: a row each then.
        row_tokens=args.row_tokens if settings.world_size == 1 else _UNSPLIT,
        cache_bytes=args.cache_mb * 2**20,
        beginnings=examples.beginnings,
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
            forget_target=args.forget_target,
            retain_tolerance=args.retain_tolerance,
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
        callbacks=[*own, *callbacks],
        advance=lambda n: progress.advance(task, n),
    )
    trainer.remove_callback(PrinterCallback)  # the log and the bar say it
    if trainer.is_fsdp_enabled:
        outputs.replays = False  # sharded blocks must all run: skipping one would skip its gathering
    for callback in own:
        callback.trainer = trainer
    return trainer, stop


def _final_levels(
    args: TrainArgs, trainer: UnlearnTrainer, examples: TrainingSet, stop: StopWhenForgotten | None
) -> Levels:
    if stop is not None and stop.reached is not None:
        return stop.reached
    levels = measure(trainer.outputs, trainer.model_wrapped, examples.forget, examples.retain[: args.check_examples])
    if args.forget_target is not None:
        logger.warning(
            "training ended after %d steps short of its target: forget probability %.4f (target %.4f), "
            "retained KL %.4f (tolerance %.4f); raise max_steps or learning_rate, or evaluate whether this suffices",
            trainer.state.global_step,
            levels.forget_probability,
            args.forget_target,
            levels.retain_kl,
            args.retain_tolerance,
        )
    return levels
