"""A finished method's model again, in another process: experiments train in one stage and measure in the next."""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel

from benchmarks.paper.baselines.ensemble import Ensemble
from benchmarks.paper.baselines.models import load_model, load_original
from benchmarks.paper.task import RECORD_NAME, Accounting, Task, Unlearned
from unlearn_serve.format import MANIFEST_NAME
from unlearn_serve.layers import load_adapter


def load_unlearned(task: Task, method: str) -> Unlearned:
    """Return what `run` returned, from the files it left in `task.work / method`.

    Raises:
        FileNotFoundError: the method has not finished.
    """
    found = json.loads((task.work / method / RECORD_NAME).read_text())
    checkpoint, adapter = (None if found[key] is None else Path(found[key]) for key in ("checkpoint", "adapter"))
    return Unlearned(
        method=method,
        model=_load(task, checkpoint, adapter, found["details"].get("members", [])),
        accounting=Accounting(**found["accounting"]),
        prepared=None if found["prepared"] is None else Accounting(**found["prepared"]),
        checkpoint=checkpoint,
        adapter=adapter,
        details=found["details"],
    )


def _load(task: Task, checkpoint: Path | None, adapter: Path | None, members: list[str]) -> Any:
    if checkpoint is None:
        return Ensemble([load_model(Path(one), task.kind, frozen=True) for one in members])
    if adapter is None:
        return load_original(task) if checkpoint == task.original else load_model(checkpoint, task.kind, frozen=True)
    if (adapter / MANIFEST_NAME).exists():
        return load_adapter(load_original(task), adapter).eval()
    return PeftModel.from_pretrained(load_original(task), str(adapter)).eval()
