"""Settings for the whole suite, and the command line."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from support.command_line import Done, Run

# Two cores, shared with engines: torch's idle threads spin and cost more than they bring on tensors of test size.
torch.set_num_threads(1)
# A deadline would be a timed assertion, and so would the check for slow data: the machine may be busy.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process, as its console script does."""
    from unlearn_serve.cli.app import main

    def call(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["unlearn-serve", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Done(int(code or 0), *capsys.readouterr())

    return call
