import sys
from pathlib import Path

import pytest
from support.command_line import Done, Run

from unlearn_serve.cli.app import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process, as its console script does."""

    def call(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["unlearn-serve", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Done(int(code or 0), *capsys.readouterr())

    return call
