"""Methods of unlearning by name, behind one interface (`benchmarks.paper.task`); docs/baselines.md describes each.

    from benchmarks.paper.baselines import BASELINES
    unlearned = BASELINES["sisa"].run(task, Budget())

`load_unlearned(task, "sisa")` returns it again in another process. A method with other settings:
`dataclasses.replace(BASELINES["lora"], targets="all-linear", name="lora-all")`.
"""

from benchmarks.paper.baselines.eul import Eul
from benchmarks.paper.baselines.finetune import Finetune
from benchmarks.paper.baselines.fitting import fit_checkpoint
from benchmarks.paper.baselines.load import load_unlearned
from benchmarks.paper.baselines.lora import Lora
from benchmarks.paper.baselines.mend_like import MendLike
from benchmarks.paper.baselines.original import Original
from benchmarks.paper.baselines.product import BOUNDED_OBJECTIVE
from benchmarks.paper.baselines.retrain import Retrain
from benchmarks.paper.baselines.reverse_gradient import ReverseGradient
from benchmarks.paper.baselines.sisa import Sisa
from benchmarks.paper.task import Baseline

_ALL: tuple[Baseline, ...] = (
    Original(),
    Retrain(),
    Finetune(),
    Sisa(),
    ReverseGradient(),
    MendLike(),
    Lora(),
    Eul(name="eul", recipe="eul"),
    Eul(name="eul-bounded", recipe=BOUNDED_OBJECTIVE),
)

BASELINES: dict[str, Baseline] = {one.name: one for one in _ALL}

__all__ = [
    "BASELINES",
    "Eul",
    "Finetune",
    "Lora",
    "MendLike",
    "Original",
    "Retrain",
    "ReverseGradient",
    "Sisa",
    "fit_checkpoint",
    "load_unlearned",
]
