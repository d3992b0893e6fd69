"""LoRA with the product's objective: what a user would pick instead of unlearning layers.

Hu et al., "LoRA", ICLR 2022; the library is PEFT. Base, data, objective, schedule, rank and point to stop at are those
of `eul-bounded`, through the product's own loss; only where the two maps sit differs, and that nothing stands between
them:

    W x  ->  W x + alpha/r B A x        A: [r, in], B: [out, r], B = 0 at first, alpha = r
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import LoraConfig, PeftModel, get_peft_model
from rich.progress import Progress
from torch import nn
from transformers import set_seed

from benchmarks.paper.baselines.meter import Meter, WithinBudget
from benchmarks.paper.baselines.models import (
    ffn_output_maps,
    fresh_folder,
    load_original,
    load_tokenizer,
    weight_bytes,
)
from benchmarks.paper.baselines.product import BOUNDED_OBJECTIVE, json_settings, train_args
from benchmarks.paper.task import Budget, Task, Unlearned
from unlearn_serve.data import read_examples
from unlearn_serve.sites import find_ffn_modules, has_two_stacks
from unlearn_serve.training import Name, TrainArgs
from unlearn_serve.training.assembly import (
    build_examples,
    build_trainer,
    chosen_blocks,
    end,
    training_arguments,
    with_steps,
)
from unlearn_serve.training.callbacks import progress_bar
from unlearn_serve.training.examples import TrainingSet

Targets = Literal["down", "all-linear"]


@dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA on the maps that `targets` names in the blocks that `eul-bounded` would put its layers in."""

    name: str = "lora"

    recipe: Name = BOUNDED_OBJECTIVE
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
        blocks = chosen_blocks(args, sorted(find_ffn_modules(base)), two_stacks=has_two_stacks(base))
        # Read back as the product reads them: one path from rows to tokens for both.
        forget, retain = read_examples(args.forget), read_examples(args.retain) if args.retain else []
        with Meter() as meter:
            examples = build_examples(
                args, base, load_tokenizer(task.original), task.kind, forget, retain, _silent_bar()
            )
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


def _train(
    args: TrainArgs, task: Task, model: PeftModel, examples: TrainingSet, first_block: int, within: WithinBudget
) -> dict[str, Any]:
    args = with_steps(args, examples)
    with _silent_bar() as progress:
        trainer, stop = build_trainer(
            args,
            training_arguments(args, args.out),
            model,
            examples,
            first_block=first_block,
            progress=progress,
            form=task.kind,
            callbacks=[within],
        )
        trainer.train()
    landing = end(args, trainer, examples, stop)
    said = {f"reached_{name}": value for name, value in landing.levels.as_dict().items()}
    return {"stopped_early": stop is not None and stop.reached is not None, **said}


def _silent_bar() -> Progress:
    progress = progress_bar()
    progress.disable = True
    return progress
