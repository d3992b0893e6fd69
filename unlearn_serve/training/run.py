"""One training run, start to end."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft import PeftModel
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from unlearn_serve.bf16 import fast_bf16
from unlearn_serve.data import read_examples
from unlearn_serve.errors import TrainingError
from unlearn_serve.format import MANIFEST_NAME, fingerprint_base_model, write_manifest
from unlearn_serve.fusion.grams import write_grams
from unlearn_serve.layers import adapter_blocks, add_adapter
from unlearn_serve.sites import find_ffn_modules, has_two_stacks
from unlearn_serve.training.args import TrainArgs
from unlearn_serve.training.assembly import (
    build_examples,
    build_trainer,
    chosen_blocks,
    end,
    training_arguments,
    warmup_steps,
    with_steps,
)
from unlearn_serve.training.callbacks import progress_bar
from unlearn_serve.training.examples import TrainingSet, row_id
from unlearn_serve.training.forms import load_model
from unlearn_serve.training.frozen_cache import FrozenCache
from unlearn_serve.training.gram_hooks import forgotten_and_retained
from unlearn_serve.training.never_saw import holdout_levels, retrained_levels
from unlearn_serve.training.record import build_manifest

CHECKPOINTS_NAME = "checkpoints"


@fast_bf16()
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
    base_model = fingerprint_base_model(args.model)
    forget, retain = read_examples(args.forget), read_examples(args.retain) if args.retain else []
    settings = training_arguments(args, args.out / CHECKPOINTS_NAME)
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model, local_files_only=True)
    base, form = load_model(args)
    base.eval().to(settings.device)
    paths = {block: path for block, (path, _) in find_ffn_modules(base).items()}
    blocks = chosen_blocks(args, sorted(paths), two_stacks=has_two_stacks(base))

    checkpoint = get_last_checkpoint(settings.output_dir) if Path(settings.output_dir).is_dir() else None
    with progress_bar() as progress:
        progress.disable = settings.process_index > 0
        examples = build_examples(args, base, tokenizer, form, forget, retain, progress)
        model = add_adapter(base, rank=args.rank, activation=args.activation, blocks=blocks, seed=args.seed)
        first_block = min(adapter_blocks(model))
        cache = None
        if args.frozen_cache is not None:
            cache = FrozenCache(args.frozen_cache, model=base_model, first_block=first_block, dtype=base.dtype)
            cache.delete({row_id(example) for example in forget})
        args = _settled(args, model, tokenizer, examples, processes=settings.world_size)
        settings.max_steps, settings.warmup_steps = args.max_steps, warmup_steps(args)
        trainer, stop = build_trainer(
            args,
            settings,
            model,
            examples,
            first_block=first_block,
            progress=progress,
            form=form,
            cache=cache,
            checkpoint=checkpoint,
            callbacks=callbacks,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        landing = end(args, trainer, examples, stop)
        counted = len(examples.encoded) - len(examples.texts)  # texts are last, and forgotten rows once more
        task = progress.add_task("grams", total=counted)
        grams = forgotten_and_retained(
            model,
            trainer.model_wrapped,
            trainer.outputs,
            examples.forget,
            range(examples.forget.stop, counted),
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
            "landed_at_scale": landing.scale,
            **{f"reached_{name}": value for name, value in landing.levels.as_dict().items()},
        }
        write_manifest(args.out, build_manifest(args, args.out, sites, outcome, two_stacks=has_two_stacks(base)))
        shutil.rmtree(args.out / CHECKPOINTS_NAME, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return args.out


def _settled(
    args: TrainArgs, model: PeftModel, tokenizer: PreTrainedTokenizerBase, examples: TrainingSet, *, processes: int
) -> TrainArgs:
    """Put numbers in place of what depends on the data: steps for epochs, targets for a model that never saw them."""
    args = with_steps(args, examples, processes=processes)
    if args.holdout is not None:
        levels = holdout_levels(args, model, tokenizer)
    elif args.retrained is not None:
        levels = retrained_levels(args, model, examples)
    else:
        return args
    extraction = None if math.isnan(levels.forget_extraction) else levels.forget_extraction
    return replace(args, forget_target=levels.forget_probability, extraction_target=extraction)
