"""Child processes that are measured: started in a session of their own, watched through /proc, ended by pid."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships no types

STOP_SECONDS = 20.0

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # On CPU, vLLM 0.32 cannot load what its ahead-of-time compilation saved and compiles for a minute at every start;
    # the older way to keep compiled graphs works. The graphs are the same.
    "VLLM_USE_AOT_COMPILE": "0",
}
"""What every child process gets, whatever its variant."""


class BenchmarkError(Exception):
    """A measurement cannot be made; the message says which and why."""


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without settings of vLLM or of ours, and with `more`.

    The variables of `machine.THREAD_VARIABLES` stay: every line names them.
    """
    drop = ("VLLM_", "UNLEARN_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(drop) or k == "VLLM_CPU_OMP_THREADS_BIND"}
    return {**kept, **ENVIRONMENT, **more}


class Measured:
    """A child process and all its descendants."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=stdin,
                stdout=out if stdout is None else stdout,
                stderr=out,
                start_new_session=True,
            )

    def require_alive(self) -> None:
        """Raise BenchmarkError where the process has ended."""
        if self.process.poll() is not None:
            raise BenchmarkError(
                f"{self.name}: the process ended with status {self.process.returncode}; last lines of {self.log}:\n"
                + "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
            )

    def group(self) -> list[psutil.Process]:
        """Return the process and its descendants that are alive."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def reset_peak(self) -> None:
        """Let the kernel count each process's peak resident memory from now on."""
        for process in self.group():
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peak_mib(self) -> float:
        """Return the sum over the group of each process's peak resident memory since `reset_peak`, in MiB."""
        return sum(_status_kib(process.pid, "VmHWM") for process in self.group()) / 1024

    def stop(self) -> None:
        """End the group, gently first; safe to call again."""
        group = self.group()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(group, timeout=STOP_SECONDS)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=STOP_SECONDS)
        self.process.wait(STOP_SECONDS)


def _status_kib(pid: int, field: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
