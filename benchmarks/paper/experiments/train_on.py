"""One unlearning layer that is trained on: each request goes on where the last one left it, as in the paper's table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import set_seed

from benchmarks.paper.baselines.models import load_tokenizer
from unlearn_serve.data import read_examples
from unlearn_serve.layers import adapter_blocks, load_adapter, save_adapter
from unlearn_serve.training import TrainArgs
from unlearn_serve.training.assembly import build_trainer, training_arguments
from unlearn_serve.training.callbacks import progress_bar
from unlearn_serve.training.examples import build_training_set


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
    assert args.forget_target is not None
    progress = progress_bar()
    progress.disable = True
    trainer, stop = build_trainer(
        args,
        training_arguments(args, args.out),
        model,
        examples,
        first_block=min(adapter_blocks(model)),
        progress=progress,
    )
    trainer.train()
    save_adapter(model, args.out)
    model.eval()
    return {"steps": trainer.state.global_step, "stopped_early": stop is not None and stop.reached is not None}
