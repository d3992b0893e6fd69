"""What a training run is told."""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from unlearn_serve.errors import TrainingError
from unlearn_serve.format import Activation
from unlearn_serve.training.objectives import NPO, Objective


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """One training run: base model and data in, adapter directory out."""

    model: Path
    """Folder of the base model's checkpoint (config.json, *.safetensors, tokenizer)."""

    forget: Path
    """JSONL file of what to forget. Several phrasings of a fact, a row each, forget it more surely."""

    retain: Path | None = None
    """JSONL file of what must stay: neighbours of what is forgotten and general rows. None: forget without guard."""

    out: Path
    """Adapter directory to write; missing, empty, or holding an interrupted run to resume."""

    deletion_ids: tuple[str, ...]
    """Ids of the deletion requests that the adapter covers; at least one."""

    model_name: str | None = None
    """Name of the base model for people to read; None: that of its folder."""

    rank: int = 64
    """Bottleneck width r of every unlearning layer."""

    activation: Activation = "silu"
    """Activation between the maps: identity, relu, silu or gelu."""

    freeze_down: bool = False
    """Train W_up alone. Adapters of one seed, rank and set of blocks then share W_down, so that RegMean fuses maps of
    the same features; take a wide rank, and an activation other than identity."""

    blocks: tuple[int, ...] | None = None
    """Decoder blocks that get a layer; None: those that `depth` names."""

    depth: tuple[float, float] = (0.5, 1.0)
    """Where the layers go, as fractions of the depth: from the first, below the second. Blocks under the lowest layer
    cost nothing: their output is computed once."""

    objective: Objective = NPO
    """Terms and weights of the loss; `NPO` is bounded, `EUL` the paper's. See `RECIPES` for the named ones."""

    schedule: Literal["joint", "alternate"] = "joint"
    """joint: forgotten and retained examples in each step. alternate: an epoch of retained, then one of forgotten
    examples, and so on (the paper's)."""

    learning_rate: float = 2e-4
    """Peak learning rate of AdamW."""

    max_steps: int = 60
    """Optimiser steps at most."""

    epochs: int | None = None
    """Epochs at most, in place of `max_steps`; one of retained and one of forgotten data count as one."""

    warmup: float = 0.06
    """Share of `max_steps` in which the learning rate climbs; it then falls linearly to 0."""

    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, per step and unit of learning rate."""

    max_grad_norm: float = 1.0
    """Gradients are scaled down to this L2 norm."""

    forget_batch: int = 8
    """Forgotten examples in a step, per device."""

    retain_batch: int = 16
    """Retained examples in a step, per device."""

    gradient_accumulation: int = 1
    """Micro-steps per optimiser step; each has its own `forget_batch` and `retain_batch`."""

    max_length: int = 512
    """Tokens that an example may have; longer ones are refused, never cut."""

    row_tokens: int = 512
    """Tokens that examples are packed into rows of, in one pass of the model. Attention's cost per token grows with it,
    across examples that do not see each other; fewer than some hundreds leave matrix products short."""

    gold_only: bool = True
    """Where a forgotten answer contains its row's gold string, forget that string alone and hold the words before it
    to the frozen model, as if retained: "The author is" belongs to every other answer too. Retained answers count
    twice then, as a whole and by their gold string. False: whole answers only."""

    lm_on_text: bool = False
    """Whether `forget_lm` reads forgotten rows as running text (`texts`), as the paper's L_LM does, or their answers
    alone."""

    refusal: str = "I don't know."
    """What the objective `idk` prefers to forgotten answers."""

    own_answers: bool = True
    """Also train on what the model itself answers, greedily, to every prompt: forget it where it says the gold string
    of a forgotten row, retain it for retained prompts. Costs a generation per prompt; needless where the data already
    hold the model's own words."""

    own_answer_tokens: int = 24
    """Tokens of such an answer at most."""

    forget_target: float | None = 0.005
    """Stop once forgotten answers have at most this probability and `retain_tolerance` holds; None: never stop early.
    Mean over answers: of the gold string as a whole where that alone is forgotten, else exp(mean log p per token)."""

    extraction_target: float | None = None
    """Stop no sooner than forgotten whole answers have at most this extraction strength, on average: their probability
    can be low while long stretches are still said. Read beside `forget_target`. None: whatever it is."""

    holdout: Path | None = None
    """JSONL file of rows like the forgotten ones that no training saw. The frozen model's levels on them then are
    `forget_target` and `extraction_target`: forgotten answers need not become less likely than answers that were never
    learnt."""

    retrained: Path | None = None
    """Folder of a model that was trained without the forgotten rows. Its levels on them then are `forget_target` and
    `extraction_target`."""

    reference: Path | None = None
    """Folder of a model that never saw the forgotten rows, such as the checkpoint before it was fine-tuned on them: the
    teacher of `forget_reference`. It is asked once, before training."""

    land: bool | None = None
    """Scale the layers down to where the target is just met, once training is past it (`landing.land`). None: where the
    target is the level of a model that never saw the rows (`holdout`, `retrained`)."""

    retain_tolerance: float = 0.01
    """Mean KL(F || F(f)) per retained answer token, in nats, that early stopping allows."""

    check_examples: int = 64
    """Retained examples that a check before stopping reads at most; forgotten ones it reads all."""

    cache_mb: int = 1024
    """MiB of memory for the frozen model's outputs (hidden states under the first layer, logits at answers). What does
    not fit is computed anew at every step."""

    frozen_cache: Path | None = None
    """Folder that keeps the frozen model's outputs on retained rows for the next request on the same model, which then
    need not compute them; nothing of forgotten rows, see `frozen_cache`. None: nothing outlives the run."""

    gram_sketch: int | None = None
    """Rows that stand for each Gram matrix [d, d] of hidden states, see `GramSketch`; None: exact Grams."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the base model's weights and activations; auto: that of its checkpoint. Layers are trained in fp32."""

    save_steps: int | None = None
    """Optimiser steps between checkpoints in out/checkpoints; None: no checkpoints."""

    seed: int = 0
    """Seeds W_down and the order of examples. Adapters to be fused had best share it."""

    command: tuple[str, ...] = field(default_factory=lambda: tuple(sys.argv))
    """Command line, for the manifest's provenance."""

    def __post_init__(self) -> None:
        """Refuse values out of range and settings that contradict each other.

        Raises:
            TrainingError: see above.
        """
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise TrainingError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.epochs is not None and self.epochs < 1:
            raise TrainingError(f"epochs: expected at least 1 or none, got {self.epochs}")
        if self.gram_sketch is not None and self.gram_sketch < 1:
            raise TrainingError(f"gram_sketch: expected at least 1 or none, got {self.gram_sketch}")
        if self.holdout is not None and self.retrained is not None:
            raise TrainingError("holdout and retrained: expected one of them, got both; each says when to stop")
        if self.extraction_target is not None and self.forget_target is None:
            raise TrainingError("extraction_target: expected forget_target beside it, got none; it is read beside that")
        if self.objective.refuses and self.gold_only:
            raise TrainingError("gold_only: a refusal takes the place of a whole answer; set gold_only to False")
        if (self.reference is not None) != bool(self.objective.forget_reference):
            raise TrainingError(
                "reference: expected a model where, and only where, the objective imitates one (bad-teacher), got "
                + ("none" if self.reference is None else "one that nothing reads")
            )
        if self.save_steps is not None and self.save_steps < 1:
            raise TrainingError(f"save_steps: expected at least 1 or none, got {self.save_steps}")
        if not 0 <= self.depth[0] < self.depth[1] <= 1:
            raise TrainingError(f"depth: expected 0 <= first < second <= 1, got {self.depth}")
        if not self.learning_rate > 0:
            raise TrainingError(f"learning_rate: expected a number > 0, got {self.learning_rate}")
        if self.retain is None and self.schedule == "alternate":
            raise TrainingError("schedule: 'alternate' needs retained examples; give retain or use 'joint'")

    @property
    def lands(self) -> bool:
        """Whether the layers are scaled down at the end, see `land`."""
        return self.land if self.land is not None else bool(self.holdout or self.retrained)

    def settings(self) -> dict[str, float | int | str | bool]:
        """Return what shaped the training, flat, for the manifest: no paths, no data."""
        chosen: dict[str, float | int | str | bool] = {
            name: getattr(self, name) for name in _SETTINGS if getattr(self, name) is not None
        }
        chosen["land"] = self.lands
        chosen.update({item.name: getattr(self.objective, item.name) for item in fields(self.objective)})
        return chosen


_AT_LEAST_ONE = (
    "rank",
    "max_steps",
    "forget_batch",
    "retain_batch",
    "gradient_accumulation",
    "max_length",
    "row_tokens",
    "own_answer_tokens",
    "check_examples",
)
_SETTINGS = (
    "freeze_down",
    "schedule",
    "learning_rate",
    "max_steps",
    "epochs",
    "warmup",
    "weight_decay",
    "max_grad_norm",
    "forget_batch",
    "retain_batch",
    "gradient_accumulation",
    "gold_only",
    "lm_on_text",
    "own_answers",
    "own_answer_tokens",
    "forget_target",
    "extraction_target",
    "retain_tolerance",
    "dtype",
)
