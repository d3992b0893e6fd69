"""The paper's two tables: every method on IMDB and on SAMSum, for each share of the training rows to forget."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from benchmarks.paper.baselines.models import load_tokenizer
from benchmarks.paper.data import imdb, samsum
from benchmarks.paper.data.imdb import Rows, RowsSize, read_imdb, running_text
from benchmarks.paper.data.samsum import read_samsum
from benchmarks.paper.experiments.methods import (
    FROZEN,
    Data,
    at_holdout_level,
    fit_of,
    method_of,
    read_by,
    seeds_of,
)
from benchmarks.paper.experiments.models import BASE, base_folder, fitted
from benchmarks.paper.experiments.settings import as_json
from benchmarks.paper.measuring import NO_ANSWERS, accuracy, columns, measures, read_sets, rouge, rounded
from benchmarks.paper.sizes import METHODS, Sizes
from benchmarks.paper.stages import Context, Stage
from benchmarks.paper.task import Baseline, Budget, Fit, Task
from unlearn_serve.data import Example
from unlearn_serve.evaluation.scores import Scores

TASKS: tuple[Data, ...] = ("imdb", "samsum")
FILES = {"imdb": imdb.FILES, "samsum": samsum.FILES}


def table_stages(sizes: Sizes) -> list[Stage]:
    """The original and all methods of both tasks."""
    stages = []
    for task in TASKS:
        shared = shared_config(task, sizes)
        shards: tuple[str, ...] = ()  # SISA's are made by the first stage that needs them
        stages.append(original_stage(f"{task}/original", {**shared, "shares": list(sizes.shares)}))
        for share in sizes.shares:
            for name in METHODS:
                for seed in seeds_of(name, sizes.seeds):
                    stage = method_stage(
                        f"{task}/forget{percent(share)}/{name}-seed{seed}",
                        method_of(name, task, sizes),
                        {**shared, "share": share, "seed": seed},
                        original=f"{task}/original",
                        after=shards if name == "sisa" else (),
                        sizes=sizes,
                        minutes=1.5 if name in (*FROZEN, "mend-like") else 5,
                    )
                    stages.append(stage)
                    if name == "sisa":
                        shards = (stage.name,)
    return stages


def shared_config(task: Data, sizes: Sizes) -> dict[str, Any]:
    """The settings of all stages of a task."""
    return {
        "task": task,
        "rows": as_json(sizes.imdb if task == "imdb" else sizes.samsum),
        "fit": as_json(fit_of(task, sizes)),
        "precision": sizes.fit_precision,
        "answer_tokens": sizes.answer_tokens,
        "mislabelled": 0.0,
    }


def percent(share: float) -> str:
    """A share as the tables and the stages' names write it: 0.5, 1, 10."""
    return f"{100 * share:g}"


def original_stage(name: str, config: Mapping[str, Any]) -> Stage:
    """The stage of the model that has seen all rows, and what it knows of each of the config's shares of them."""
    return Stage(name=name, run=_original, config=config, inputs=(BASE,), data=FILES[config["task"]], minutes=6)


def method_stage(
    name: str,
    method: Baseline,
    config: Mapping[str, Any],
    *,
    original: str,
    after: tuple[str, ...] = (),
    sizes: Sizes,
    minutes: float,
) -> Stage:
    """The stage of one method on one request."""
    frozen = method.name in FROZEN
    return Stage(
        name=name,
        run=partial(_unlearned, method, original),
        config={
            **config,
            "precision": sizes.precision if frozen else sizes.fit_precision,
            "guard_rows": sizes.guard_rows,
            "method": method.name,
            "settings": as_json(method),
        },
        inputs=(BASE, original, *after),
        data=FILES[config["task"]],
        minutes=minutes,
    )


def read_rows(ctx: Context) -> Rows:
    """The rows that the stage's settings name."""
    size = RowsSize(**ctx.config["rows"])
    if ctx.config["task"] == "imdb":
        return read_imdb(ctx.data, size, mislabelled=ctx.config["mislabelled"])
    return read_samsum(ctx.data, size)


def _original(ctx: Context) -> Mapping[str, Any]:
    rows = read_rows(ctx)
    model, tokenizer, cost = fitted(
        ctx, rows.train, Fit(**ctx.config["fit"]), precision=ctx.config["precision"], seed=0
    )
    tokens = _answer_tokens(ctx)
    known = read_sets(model, tokenizer, {"holdout": rows.test}, max_new_tokens=tokens)  # the same for every share
    found = {
        percent(share): scored(ctx, model, tokenizer, rows, rows.forget(share), rows.retain(share), known=known)
        for share in ctx.config["shares"]
    }
    return {"accounting": cost, "forget": found}


def _unlearned(method: Baseline, original: str, ctx: Context) -> Mapping[str, Any]:
    rows, share = read_rows(ctx), ctx.config["share"]
    # SISA's shards are made once for all requests on the same data.
    work = ctx.shared("sisa", of=original) if method.name == "sisa" else ctx.folder
    task = Task(
        name=ctx.stage.name.replace("/", "-"),
        kind="decoder",
        base=base_folder(ctx),
        original=ctx.files(original) / "model",
        **read_by(
            method, rows.forget(share), rows.retain(share), guard_rows=ctx.config["guard_rows"], seed=ctx.config["seed"]
        ),
        fit=Fit(**ctx.config["fit"]),
        work=work,
        precision=ctx.config["precision"],
        seed=ctx.config["seed"],
    )
    before = ctx.result(original)["forget"][percent(share)]
    unlearned = at_holdout_level(method, before).run(task, Budget())
    tokenizer = load_tokenizer(task.original)
    result = scored(ctx, unlearned.model, tokenizer, rows, rows.forget(share), rows.retain(share))
    shutil.rmtree(work / method.name / ("after" if method.name == "sisa" else ""), ignore_errors=True)
    return {
        "accounting": asdict(unlearned.accounting),
        "prepared": as_json(unlearned.prepared),
        "details": {name: value for name, value in as_json(unlearned.details).items() if name != "members"},
        **result,
    }


def scored(
    ctx: Context,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    known: Mapping[str, list[Scores]] | None = None,
) -> dict[str, Any]:
    """The table's columns: test, retained, forgot, the LM loss on the forgotten texts; and membership inference.

    `known`: sets of scores that need not be read again.
    """
    summaries = ctx.config["task"] == "samsum"
    asked = {"holdout": rows.test, "retain": retain[: ctx.config["rows"]["retained"]], "forget": forget}
    unread = {name: some for name, some in asked.items() if name not in (known or {})}
    scores = {**(known or {}), **read_sets(model, tokenizer, unread, max_new_tokens=_answer_tokens(ctx))}
    texts = read_sets(model, tokenizer, {"text": running_text(forget)}, max_new_tokens=NO_ANSWERS)
    judge = {
        name: rounded(rouge(scores[name], asked[name]) if summaries else {"accuracy": accuracy(scores[name])})
        for name in asked
    }
    return {
        "test": judge["holdout"],
        "retained": judge["retain"],
        "forgot": judge["forget"],
        "lm_loss": measures(texts)["text.lm_loss"]["value"],
        "measures": measures(scores),
        "rows": {name: {"loss": columns(scores[name])["loss"]} for name in ("forget", "holdout")},
    }


def _answer_tokens(ctx: Context) -> int:
    """Only summaries are read; a label is judged by its probability."""
    tokens: int = ctx.config["answer_tokens"] if ctx.config["task"] == "samsum" else NO_ANSWERS
    return tokens
