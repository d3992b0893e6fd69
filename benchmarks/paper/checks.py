"""How each statement of the paper's (`claims.CLAIMS`) is held against the results: two figures and their order."""

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from benchmarks.paper.experiments.tables import percent
from benchmarks.paper.summary import result, seeds

OTHERS = ("retrain", "finetune", "sisa", "reverse-gradient", "mend-like")
"""The paper's other methods."""

Found = tuple[bool, str]
"""Whether it holds here, and the figures that say so."""


def mean_of(results: Path, folder: str, method: str, *path: str) -> float | None:
    """The mean over seeds of one figure of a method's results."""
    found = []
    for one in seeds(results, folder, method):
        for key in path:
            one = one[key]
        found.append(float(one))  # type: ignore[arg-type]  # JSON: a path that ends early fails here
    return sum(found) / len(found) if found else None


def _imdb(results: Path, method: str, *path: str, share: str = "10") -> float | None:
    return mean_of(results, f"imdb/forget{share}", method, *path)


class Order(Protocol):
    """Two figures in an order, scaled and with their unit; None where one of them is missing."""

    def __call__(
        self, ours: float | None, other: float | None, unit: str = "", factor: float = 1.0
    ) -> Found | None: ...


def _ordered(holds: Callable[[float, float], bool]) -> Order:
    def check(ours: float | None, other: float | None, unit: str = "", factor: float = 1.0) -> Found | None:
        if ours is None or other is None:
            return None
        return holds(ours, other), f"{factor * ours:.3g}{unit} against {factor * other:.3g}{unit}"

    return check


below, above, at_least = _ordered(operator.lt), _ordered(operator.gt), _ordered(operator.ge)
"""Ours against the other."""


def compared(
    folder: str, ours: str, order: Order, other: str, *path: str, unit: str = "", factor: float = 1.0
) -> Callable[[Path], Found | None]:
    """One figure of two methods' results on the same rows."""

    def check(results: Path) -> Found | None:
        values = (mean_of(results, folder, name, *path) for name in (ours, other))
        return order(*values, unit, factor)

    return check


def accuracy(
    column: str, ours: str, order: Order, other: str, *, folder: str = "imdb/forget10"
) -> Callable[[Path], Found | None]:
    """Two methods' accuracies in one column of an IMDB table."""
    return compared(folder, ours, order, other, column, "accuracy", unit=" %", factor=100)


def forgets_most(results: Path) -> Found | None:
    """EUL against the lowest accuracy on forgotten rows of all others, which is named."""
    others = {name: _imdb(results, name, "forgot", "accuracy") for name in OTHERS}
    known = {name: value for name, value in others.items() if value is not None}
    ours = _imdb(results, "eul", "forgot", "accuracy")
    if ours is None or len(known) < len(others):
        return None
    least = min(known, key=lambda name: known[name])
    found = below(ours, known[least], " %", 100)
    return None if found is None else (found[0], f"{found[1]} ({least})")


def loses_most(results: Path) -> Found | None:
    """MEND against the lowest of all others, on test rows."""
    others = [_imdb(results, name, "test", "accuracy") for name in ("eul", *OTHERS) if name != "mend-like"]
    known = [value for value in others if value is not None]
    lowest = min(known) if len(known) == len(others) else None
    return below(_imdb(results, "mend-like", "test", "accuracy"), lowest, " %", 100)


def faster(results: Path) -> Found | None:
    """Seconds of EUL against those of re-training, where both were made on one machine."""
    ours, other = (mean_of(results, "imdb/mislabelled", name, "accounting", "seconds") for name in ("eul", "retrain"))
    if ours is None or other is None:
        return None
    return ours < other, f"{ours:.0f} s against {other:.0f} s, {other / ours:.1f} times"


def attack(results: Path) -> Found | None:
    """How far from 0.5 the loss attack is: the paper's figure too is of an attack on losses."""
    ours, other = (_imdb(results, name, "measures", "mia_loss", "value") for name in ("eul", "retrain"))
    if ours is None or other is None:
        return None
    return abs(ours - 0.5) > abs(other - 0.5), f"AUC {ours:.3f} against {other:.3f}"


def without(name: str, *path: str, higher: bool) -> Callable[[Path], Found | None]:
    """Leaving a term out moves a figure up (or down) against the whole objective, at the ablation's share."""

    def check(results: Path) -> Found | None:
        share = ablated_share(results)
        value = mean_of(results, "imdb/ablation", name, *path)
        whole = None if share is None else _imdb(results, "eul", *path, share=share)
        factor, unit = (100, " %") if path[-1] == "accuracy" else (1, "")
        return (above if higher else below)(value, whole, unit, factor)

    return check


def without_lm_forgets(results: Path) -> Found | None:
    """Against the original's accuracy on the same rows."""
    share, original = ablated_share(results), result(results, "imdb/original")
    if share is None or original is None:
        return None
    before = float(original["forget"][share]["forgot"]["accuracy"])
    return below(mean_of(results, "imdb/ablation", "without-lm", "forgot", "accuracy"), before, " %", 100)


def ablated_share(results: Path) -> str | None:
    """The percentage of the rows that the ablation takes out, as stages' names write it; None: it has not run."""
    for path in sorted((results / "imdb/ablation").glob("*.json")):
        return percent(json.loads(path.read_text())["config"]["share"])
    return None


def fused(way: str, figure: str, order: Order, unit: str) -> Callable[[Path], Found | None]:
    """A way to fuse against one layer that is trained on, after three requests."""

    def check(results: Path) -> Found | None:
        found = result(results, "tofu/sequence/summary")
        if found is None:
            return None
        ours, one = (found[name].get("3", {}).get(figure) for name in (way, "trained-on"))
        compared = order(ours, one)
        return None if compared is None else (compared[0], f"{compared[1]} {unit}")

    return check
