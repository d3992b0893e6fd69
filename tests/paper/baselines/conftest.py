from pathlib import Path

import pytest

from benchmarks.paper.baselines import fit_checkpoint
from benchmarks.paper.baselines.models import save_model
from benchmarks.paper.task import Kind, Task
from tests.paper.baselines.tasks import FIT, MODELS, MakeTask, sets
from tests.training.test_forms import CLASSES
from tests.training.toy import toy_tokenizer


@pytest.fixture(scope="session")
def make_task(tmp_path_factory: pytest.TempPathFactory) -> MakeTask:
    """Make a task of a kind that writes to a folder; base and original are made once a session."""
    made: dict[Kind, Path] = {}

    def base_and_original(kind: Kind) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            save_model(MODELS[kind](), toy_tokenizer(sentinels=3), folder / "base")
            classes = CLASSES if kind == "classes" else None
            settings = {"kind": kind, "classes": classes, "max_length": 64}
            fit_checkpoint(folder / "base", folder / "original", sum(sets(kind), ()), FIT, **settings)
            made[kind] = folder
        return made[kind]

    def make(kind: Kind, work: Path) -> Task:
        folder = base_and_original(kind)
        forget, retain = sets(kind)
        return Task(
            name="case-17",
            kind=kind,
            base=folder / "base",
            original=folder / "original",
            train=(*forget, *retain),
            forget=forget,
            retain=retain,
            fit=FIT,
            work=work,
            max_length=64,
        )

    return make
