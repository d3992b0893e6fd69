"""Which precision is faster here: a step of full fine-tuning, and asking a frozen model, in fp32 and in bf16."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from benchmarks.paper.baselines.fitting import fit_rows
from benchmarks.paper.baselines.models import load_model, load_tokenizer, pad_id
from benchmarks.paper.baselines.rows import encode_rows
from benchmarks.paper.data.tofu import FILES
from benchmarks.paper.experiments.models import BASE, base_folder, loaded
from benchmarks.paper.experiments.settings import as_json
from benchmarks.paper.experiments.tofu import plain, read_size
from benchmarks.paper.measuring import NO_ANSWERS, read_sets, rounded
from benchmarks.paper.sizes import Sizes
from benchmarks.paper.stages import Context, Stage
from benchmarks.paper.task import Fit, Precision

NAME = "precision"
STEPS = 3
ROUNDS = 3


def precision_stages(sizes: Sizes) -> list[Stage]:
    """The one stage."""
    config = {"tofu": as_json(sizes.tofu), "fit": as_json(sizes.tofu_fit), "steps": STEPS, "rounds": ROUNDS}
    return [Stage(name=NAME, run=_precision, config=config, inputs=(BASE,), data=FILES, minutes=2, alone=True)]


def _precision(ctx: Context) -> Mapping[str, Any]:
    """Median seconds of `steps` optimiser steps and of reading as many rows, each precision in turn."""
    data, base, steps = read_size(ctx), base_folder(ctx), ctx.config["steps"]
    fit = replace(Fit(**ctx.config["fit"]), learning_rate=1e-6)
    rows = plain(data.train)[: steps * fit.batch_size]
    tokenizer = load_tokenizer(base)
    encoded = encode_rows(rows, tokenizer, kind="decoder", max_length=512, classes={})

    def fits(precision: Precision) -> Callable[[], None]:
        model = load_model(base, "decoder", frozen=False)
        settings: dict[str, Any] = {"kind": "decoder", "pad": pad_id(tokenizer), "seed": 0, "precision": precision}
        return lambda: fit_rows(model, encoded, fit, max_steps=steps, **settings)

    def reads(precision: Precision) -> Callable[[], None]:
        model = loaded(base, precision)

        def run() -> None:
            read_sets(model, tokenizer, {"rows": rows}, max_new_tokens=NO_ANSWERS)

        return run

    found: dict[str, dict[str, float]] = {}
    for what, make in {"fit": fits, "frozen": reads}.items():
        runs = {precision: make(precision) for precision in get_args(Precision)}
        seconds: dict[str, list[float]] = {precision: [] for precision in runs}
        for _ in range(ctx.config["rounds"] + 1):  # the first warms up
            for precision, run in runs.items():
                began = time.perf_counter()
                run()
                seconds[precision].append(time.perf_counter() - began)
        found[what] = {precision: rounded(statistics.median(some[1:])) for precision, some in seconds.items()}
    return {**found, "tokens": sum(len(one.encoded.input_ids) for one in encoded)}
