"""The C++ op for CPUs with AVX-512: built once into the user's cache by torch's extension loader, then loaded.

Loading registers it under the dispatch key CPU of the same public op. Nothing is built or loaded at import.
"""

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "cpu"
NAME = "unlearn_kernels_cpu"
# No -march=native: the instruction sets are chosen when the op runs, so a cached build moves between machines.
FLAGS = ("-O3", "-std=c++20", "-fopenmp")


@dataclass(frozen=True, kw_only=True)
class CpuPath:
    """Which path serves `apply_unlearning` on CPU tensors."""

    loaded: bool
    """Whether the C++ op serves; if not, plain torch does, with the same results up to rounding."""
    description: str
    """One line: the C++ op's kernels, or why it is not there."""


@functools.cache
def load_cpu_op() -> CpuPath:
    """Build the C++ op if this user never did, load it, and say which path serves from now on.

    Takes seconds to a minute once, milliseconds afterwards; several processes may call it at once, one builds. Never
    raises: without the instructions, a compiler or a writable cache (TORCH_EXTENSIONS_DIR moves it) plain torch
    serves. The answer of a process's first call stays. Mutates torch's table of operators.
    """
    if "AVX512" not in (capability := torch.backends.cpu.get_cpu_capability()):
        return _plain(f"the C++ op needs AVX-512, this CPU has {capability}")
    try:
        torch.ops.load_library(_built_library())
    except (OSError, RuntimeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        line = next((line for line in lines if "error:" in line), lines[0])
        return _plain(f"the C++ op could not be built: {line[:300]}")
    return CpuPath(loaded=True, description=f"C++ op ({torch.ops.unlearn_kernels.dot_kernels()})")


def _plain(reason: str) -> CpuPath:
    return CpuPath(loaded=False, description=f"plain torch: {reason}")


def _built_library() -> Path:
    sources = sorted(SOURCES.iterdir())
    folder = _cache_root() / f"{NAME}-{_digest(sources)}"
    library, complete = folder / f"{NAME}.so", folder / "complete"
    if complete.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "builder").open("w") as builder:
        # The kernel drops this lock with its process. torch's own is a file, which a killed build leaves behind and
        # which would then be waited for without end: whoever holds ours may remove it.
        fcntl.flock(builder, fcntl.LOCK_EX)
        if not complete.exists():
            (folder / "lock").unlink(missing_ok=True)
            _build([str(path) for path in sources if path.suffix == ".cpp"], folder)
            complete.touch()
    return library


def _build(sources: list[str], folder: Path) -> None:
    from torch.utils import cpp_extension

    with _scripts_on_path():
        for tool in (os.environ.get("CXX", "c++"), "ninja"):
            if shutil.which(tool) is None:
                raise RuntimeError(f"{tool} is not on PATH; install g++ and ninja")
        cpp_extension.load(
            NAME,
            sources,
            extra_cflags=list(FLAGS),
            extra_ldflags=["-fopenmp"],
            build_directory=str(folder),
            is_python_module=False,
        )


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """Let torch find the ninja that pip put beside this interpreter, in a virtual environment that is not active."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([before, str(Path(sys.executable).parent)])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _cache_root() -> Path:
    if root := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(root)
    from torch.utils import cpp_extension

    return Path(cpp_extension.get_default_build_root())


def _digest(sources: list[Path]) -> str:
    digest = hashlib.sha256(repr((torch.__version__, platform.machine(), FLAGS)).encode())
    for path in sources:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


__all__ = ["CpuPath", "load_cpu_op"]
