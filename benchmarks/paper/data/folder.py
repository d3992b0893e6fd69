"""The folder of data sets: where it is, and one clear error where it is not. Nothing is ever downloaded."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unlearn_serve.errors import DataError

VARIABLE = "PAPER_DATA"
DEFAULT = Path(__file__).parents[3].parent / "shared" / "data"
"""Beside the repository."""

SOURCES = {
    "tofu": "locuslab/TOFU (Maini et al. 2024)",
    "imdb": "the Large Movie Review Dataset (Maas et al. 2011)",
    "samsum": "SAMSum (Gliwa et al. 2019)",
}


def data_folder(given: Path | None) -> Path:
    """The folder that was given, else that of the environment's PAPER_DATA, else `DEFAULT`."""
    return (given or Path(os.environ.get(VARIABLE) or DEFAULT)).absolute()


def require_files(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder in which data files are missing.

    Raises:
        DataError: it names them, and says where to put them.
    """
    missing = sorted({name for name in names if not (folder / name).is_file()})
    if missing:
        sets = sorted({name.partition("/")[0] for name in missing})
        raise DataError(
            f"{folder}: expected the experiments' data there, got no {', '.join(missing)}; it is never downloaded: put "
            f"{'; '.join(SOURCES.get(one, one) for one in sets)} there as JSONL (benchmarks/paper/README.md says how), "
            f"name another folder with --data or {VARIABLE}, or run --quick, which makes its data up"
        )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
