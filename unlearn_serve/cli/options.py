"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

ModelOption = Annotated[Path, typer.Option(help="Folder of the base model's checkpoint.")]
