"""How large each experiment is: the full one, cut to some four hours on two cores, and the toy one for a quick run."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.paper.data.imdb import RowsSize
from benchmarks.paper.data.tofu import TofuSize
from benchmarks.paper.experiments.models import Base
from benchmarks.paper.task import Fit, Precision

METHODS = ("retrain", "finetune", "sisa", "reverse-gradient", "mend-like", "lora", "eul", "eul-bounded")
"""By their names in `BASELINES`; the original has a stage of its own."""


@dataclass(frozen=True, kw_only=True)
class SequenceSize:
    """Layers that are made to be fused: W_up alone is trained, behind a W_down that all of them share."""

    steps: tuple[int, ...]
    """After how many requests it is measured."""

    study: int
    """Requests whose layers are fused with every setting of RegMean; one of `steps`."""

    blocks: tuple[int, ...] | None
    """Where the layers sit; None: in the upper half."""

    rank: int
    learning_rate: float
    max_steps: int

    guard_rows: int
    """Retained rows that a layer reads, drawn by the request's number."""

    target: tuple[float, float]
    """Probability and extraction strength that a layer is to reach, in units of the original's on the hold-out rows."""

    retained: float
    """What a retained row counts in RegMean beside a forgotten one."""

    gain: float
    """N layers are fused with a gain of N ** `gain`."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """All that differs between a full and a quick run."""

    base: Base
    precision: Precision
    """Of frozen models; full fine-tuning then computes under autocast."""

    fit_precision: Precision
    """Of full fine-tuning."""

    rank: int
    """Of unlearning layers and LoRA."""

    blocks: tuple[int, ...] | None = None
    """Where unlearning layers of the bounded objective sit; None: in the upper half. The paper's are in all blocks."""

    blocks_study: Mapping[str, tuple[int, ...]]
    """Where they sit in a study of which blocks matter, by the name of the stage."""

    guards_study: tuple[int, ...]
    """Retained rows that it reads in a study of how many are needed; the largest: all that one author leaves."""

    steps: int
    """Optimiser steps of the bounded objective at most."""

    learning_rate: float
    """Of the bounded objective."""

    eul_learning_rates: Mapping[str, float]
    """Of the paper's objective, by data set: its own, 5e-5, is for thousands of steps; here there are a few dozen."""

    retain_batch: int
    """Retained rows in one of its steps."""

    guard_rows: int
    """Retained rows that the methods with layers read, drawn by the seed: as many as it takes, not all there are."""

    tofu: TofuSize
    tofu_fit: Fit
    tofu_forget: tuple[int, ...]
    """Authors that the tables take out."""

    tofu_methods: tuple[str, ...]
    tofu_guard_rows: int
    """Those that `eul-bounded` reads for one author, whose request is held to the word; see `guards_study`."""

    tofu_seeds: tuple[int, ...]
    """Of `eul-bounded` for one author; the models that it starts from have one."""

    sequence: SequenceSize
    imdb: RowsSize
    imdb_fit: Fit
    samsum: RowsSize
    samsum_fit: Fit
    shares: tuple[float, ...]
    """Of the training rows to forget."""

    shards: int
    """SISA's; each has one slice: fewer passes and fewer checkpoints."""

    step_rounds: tuple[int, int]
    """Rounds that time a training step, and timed steps in each."""

    robustness_forget: int
    """Authors whose request is attacked; one of `tofu_forget`."""

    relearn_rows: tuple[int, ...]
    """At most half of the rows of those authors."""

    relearn_steps: int
    answer_tokens: int
    """Of a greedy answer at most."""

    seeds: tuple[int, ...]
    """Of `eul-bounded` on IMDB and SAMSum; the models that it starts from have one."""


FULL = Sizes(
    base="SmolLM2-135M-Instruct",
    precision="bf16",
    fit_precision="bf16",
    rank=48,
    blocks=tuple(range(22, 30)),
    blocks_study={
        "first-8": tuple(range(8)),
        "middle-8": tuple(range(11, 19)),
        "last-8": tuple(range(22, 30)),
        "all-30": tuple(range(30)),
    },
    guards_study=(40, 80, 200),
    steps=60,
    learning_rate=4e-3,
    eul_learning_rates={"tofu": 2e-3, "imdb": 9.25e-4, "samsum": 1.5e-3},
    retain_batch=8,
    guard_rows=40,
    tofu=TofuSize(requests=20, guards=6, questions=8, holdout=48, general=30),
    tofu_fit=Fit(learning_rate=4e-4, epochs=5, batch_size=8),
    tofu_forget=(1, 2, 4),
    tofu_methods=("finetune", "reverse-gradient", "mend-like", "lora", "eul", "eul-bounded"),
    tofu_guard_rows=80,
    tofu_seeds=(0, 1, 2),
    sequence=SequenceSize(
        steps=(1, 2, 3, 5, 10, 20),
        study=10,
        blocks=tuple(range(20, 30)),
        rank=1024,
        learning_rate=6e-4,
        max_steps=60,
        guard_rows=64,
        target=(0.35, 1.0),
        retained=0.02,
        gain=0.23,
    ),
    imdb=RowsSize(train=160, test=60, retained=40, words=30),
    imdb_fit=Fit(learning_rate=2e-4, epochs=3, batch_size=8),
    samsum=RowsSize(train=160, test=24, retained=24, words=40),
    samsum_fit=Fit(learning_rate=3e-4, epochs=2, batch_size=8),
    shares=(0.005, 0.01, 0.1),
    shards=4,
    step_rounds=(3, 6),
    robustness_forget=2,
    relearn_rows=(2, 4, 8),
    relearn_steps=10,
    answer_tokens=32,
    seeds=(0,),
)

QUICK = Sizes(
    base="tiny",
    precision="fp32",
    fit_precision="fp32",
    rank=8,
    blocks_study={"first-2": (0, 1), "last-2": (2, 3)},
    guards_study=(4, 16),
    steps=12,
    learning_rate=5e-2,
    eul_learning_rates={"tofu": 5e-2, "imdb": 5e-2, "samsum": 5e-2},
    retain_batch=8,
    guard_rows=8,
    tofu=TofuSize(requests=3, guards=2, questions=4, holdout=6, general=4),
    tofu_fit=Fit(learning_rate=5e-3, epochs=20, batch_size=8),
    tofu_forget=(1, 2),
    tofu_methods=("finetune", "reverse-gradient", "mend-like", "lora", "eul", "eul-bounded"),
    tofu_guard_rows=16,
    tofu_seeds=(0, 1),
    sequence=SequenceSize(
        steps=(1, 2, 3),
        study=3,
        blocks=None,
        rank=64,
        learning_rate=1e-2,
        max_steps=12,
        guard_rows=8,
        target=(1.0, 1.0),
        retained=0.1,
        gain=0.1,
    ),
    imdb=RowsSize(train=20, test=8, retained=8, words=30),
    imdb_fit=Fit(learning_rate=5e-3, epochs=4, batch_size=8),
    samsum=RowsSize(train=20, test=4, retained=4, words=30),
    samsum_fit=Fit(learning_rate=5e-3, epochs=4, batch_size=8),
    shares=(0.05, 0.1),
    shards=2,
    step_rounds=(1, 2),
    robustness_forget=2,
    relearn_rows=(1, 2),
    relearn_steps=2,
    answer_tokens=8,
    seeds=(0,),
)
