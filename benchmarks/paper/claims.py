"""What the paper's tables say in words, and whether ours say the same: the shape, not the figures.

Models, data and sizes differ, so figures do; an order that the paper draws its conclusions from should not.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paper.experiments.tables import percent
from benchmarks.paper.summary import result, seeds

Found = tuple[bool, str]
"""Whether it holds here, and the figures that say so."""


@dataclass(frozen=True)
class Claim:
    """One statement of the paper's."""

    name: str
    text: str
    published: str
    check: Callable[[Path], Found | None]
    """None where the stages have not run."""


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


def _compared(low: float | None, high: float | None, unit: str = "", factor: float = 1.0) -> Found | None:
    if low is None or high is None:
        return None
    return low < high, f"{factor * low:.3g}{unit} against {factor * high:.3g}{unit}"


def _over_forgets(results: Path) -> Found | None:
    forgot = ("forgot", "accuracy")
    return _compared(_imdb(results, "eul", *forgot), _imdb(results, "retrain", *forgot), " %", 100)


def _keeps(results: Path) -> Found | None:
    kept = ("retained", "accuracy")
    ours, other = _imdb(results, "eul", *kept), _imdb(results, "reverse-gradient", *kept)
    return None if ours is None or other is None else (ours >= other, f"{100 * ours:.3g} % against {100 * other:.3g} %")


def _lm_rises(results: Path) -> Found | None:
    return _compared(_imdb(results, "retrain", "lm_loss"), _imdb(results, "eul", "lm_loss"))


def _faster(results: Path) -> Found | None:
    ours, other = (mean_of(results, "imdb/mislabelled", name, "accounting", "seconds") for name in ("eul", "retrain"))
    return _compared(ours, other, " s")


def _finetuning_remembers(results: Path) -> Found | None:
    forgot = ("forgot", "accuracy")
    ours, other = _imdb(results, "retrain", *forgot), _imdb(results, "finetune", *forgot)
    return None if ours is None or other is None else (other >= ours, f"{100 * other:.3g} % against {100 * ours:.3g} %")


def _summaries(results: Path) -> Found | None:
    path = ("forgot", "rougeL")
    ours, other = (mean_of(results, "samsum/forget10", name, *path) for name in ("eul", "retrain"))
    return _compared(ours, other, factor=100)


def _without(name: str, *path: str, higher: bool) -> Callable[[Path], Found | None]:
    """Leaving a term out moves a figure up (or down) against the whole objective, at the ablation's share."""

    def check(results: Path) -> Found | None:
        share = ablated_share(results)
        value = mean_of(results, "imdb/ablation", name, *path)
        whole = None if share is None else _imdb(results, "eul", *path, share=share)
        if value is None or whole is None:
            return None
        factor, unit = (100, " %") if path[-1] == "accuracy" else (1, "")
        said = f"{factor * value:.3g}{unit} against {factor * whole:.3g}{unit}"
        return (value > whole if higher else value < whole), said

    return check


def ablated_share(results: Path) -> str | None:
    """The percentage of the rows that the ablation takes out, as stages' names write it; None: it has not run."""
    for path in sorted((results / "imdb/ablation").glob("*.json")):
        return percent(json.loads(path.read_text())["config"]["share"])
    return None


def _fused_keeps(results: Path) -> Found | None:
    found = result(results, "tofu/sequence/summary")
    if found is None:
        return None
    fused, one = (found[name].get("3", {}).get("retained_over_original") for name in ("regmean", "trained-on"))
    return None if fused is None else (fused > one, f"{fused:.3f} against {one:.3f} of the original, after 3 requests")


def _mislabelled(results: Path) -> Found | None:
    ours, other = (mean_of(results, "imdb/mislabelled", name, "forgot", "accuracy") for name in ("eul", "retrain"))
    return _compared(ours, other, " %", 100)


CLAIMS = (
    Claim(
        "over-forgets",
        "EUL goes below the re-trained model on what was forgotten (IMDB, 10 %)",
        "57.2 against 90.2 %",
        _over_forgets,
    ),
    Claim(
        "keeps",
        "EUL keeps retained rows at least as well as reverse gradient (IMDB, 10 %)",
        "99.0 against 96.5 %",
        _keeps,
    ),
    Claim(
        "lm-rises",
        "EUL's LM loss on forgotten texts is above the re-trained model's (IMDB, 10 %)",
        "1.56 against 2.01",
        _lm_rises,
    ),
    Claim(
        "faster",
        "EUL takes less time than re-training (IMDB, 10 %; ours: the mislabelled rows, both made on one machine)",
        "1828 s against 6026 s",
        _faster,
    ),
    Claim(
        "finetune",
        "fine-tuning on the rest forgets less than re-training (IMDB, 10 %)",
        "95.8 against 90.2 %",
        _finetuning_remembers,
    ),
    Claim(
        "summaries",
        "EUL's summaries of forgotten dialogues are worse than the re-trained model's (SAMSum, 10 %; published: 0.5 %)",
        "37.2 against 42.0",
        _summaries,
    ),
    Claim(
        "without-kl",
        "without KL little is forgotten: accuracy on forgotten rows rises",
        "90.8 against 65.7 %",
        _without("without-kl", "forgot", "accuracy", higher=True),
    ),
    Claim(
        "without-task",
        "without TASK retained rows suffer",
        "97.4 against 100 %",
        _without("without-task", "retained", "accuracy", higher=False),
    ),
    Claim(
        "without-lm",
        "without LM the LM loss on forgotten texts is lower",
        "1.50 against 1.78",
        _without("without-lm", "lm_loss", higher=False),
    ),
    Claim(
        "fused-keeps",
        "layers fused by RegMean keep more than one layer trained on, after 3 requests",
        "92.4 against 91.0 % on test rows",
        _fused_keeps,
    ),
    Claim(
        "mislabelled",
        "EUL unlearns wrong labels further than re-training (accuracy on the wrong labels)",
        "5.0 against 12.6 %",
        _mislabelled,
    ),
)
