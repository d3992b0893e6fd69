"""One unlearning layer that is trained on: each request goes on where the last one left it, as in the paper's table."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainingArguments, set_seed

from benchmarks.paper.baselines.models import load_tokenizer
from unlearn_serve.data import read_examples
from unlearn_serve.layers import adapter_blocks, load_adapter, save_adapter
from unlearn_serve.training import TrainArgs
from unlearn_serve.training.callbacks import StopWhenForgotten, TrainingLog
from unlearn_serve.training.examples import build_training_set
from unlearn_serve.training.frozen import FrozenOutputs
from unlearn_serve.training.plan import plan_steps
from unlearn_serve.training.trainer import UnlearnTrainer


def train_on(base: Any, adapter: Path, args: TrainArgs) -> Mapping[str, Any]:
    """Train the adapter in `adapter` further on `args.forget`, into `args.out`; returns how it ended.

    The teacher is the plain model, as for a fresh layer. What was forgotten before is not read again: it is gone.

    Args:
        base: the original, loaded and frozen; gets the adapter.
        adapter: the layers to begin with; not changed.
        args: settings as for `train`; `forget_target` is the level to stop at.
    """
    set_seed(args.seed)
    tokenizer = load_tokenizer(args.model)
    examples = build_training_set(
        read_examples(args.forget),
        read_examples(args.retain) if args.retain else (),
        tokenizer,
        max_length=args.max_length,
        gold_only=args.gold_only,
    )
    model = load_adapter(base, adapter, is_trainable=True)
    plans = plan_steps(
        examples.forget,
        examples.retain,
        schedule=args.schedule,
        forget_batch=args.forget_batch,
        retain_batch=args.retain_batch,
        steps=args.max_steps,
        seed=args.seed,
    )
    outputs = FrozenOutputs(
        model,
        examples.encoded,
        with_logits=_read_by_kl(args, examples.forget, examples.retain),
        first_block=min(adapter_blocks(model)),
        row_tokens=args.row_tokens,
        cache_bytes=args.cache_mb * 2**20,
        beginnings=examples.beginnings,
    )
    assert args.forget_target is not None
    stop = StopWhenForgotten(
        TrainingLog(args.out / "training_log.jsonl", enabled=False),
        plans,
        plans_per_step=1,
        forget=examples.forget,
        retain=examples.retain[: args.check_examples],
        forget_target=args.forget_target,
        retain_tolerance=args.retain_tolerance,
    )
    trainer = UnlearnTrainer(
        model=model,
        args=_arguments(args),
        plans=plans,
        outputs=outputs,
        objective=args.objective,
        refusals={},
        callbacks=[stop],
    )
    trainer.remove_callback(PrinterCallback)
    stop.trainer = trainer
    trainer.train()
    save_adapter(model, args.out)
    model.eval()
    return {"steps": trainer.state.global_step, "stopped_early": stop.reached is not None}


def _read_by_kl(args: TrainArgs, forget: Sequence[int], retain: Sequence[int]) -> list[int]:
    return [*(forget if args.objective.forget_kl else ()), *retain]


def _arguments(args: TrainArgs) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(args.out),
        max_steps=args.max_steps,
        per_device_train_batch_size=1,
        optim="adamw_torch",
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(args.warmup * args.max_steps),
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=False,
        seed=args.seed,
    )
