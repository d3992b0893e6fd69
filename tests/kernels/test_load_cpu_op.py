"""Building and loading the C++ op: every failure ends in plain torch and one line that says why."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

needs_avx512 = pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(), reason="without AVX-512 no build is tried"
)

LOAD = """
import torch, unlearn_kernels
from unlearn_kernels import cpu_op
path = unlearn_kernels.load_cpu_op()
print(path.loaded, path.description, sep="|")
x, one = torch.ones(1, 8), torch.ones(1, dtype=torch.int32)
y = unlearn_kernels.apply_unlearning(x, torch.ones(1, 1, 8), torch.ones(1, 8, 1), one - 1, one, one)
assert y.tolist() == [[9.0] * 8], y
"""
# The real sources take half a minute; one file that registers nothing but a name builds in seconds.
STAND_IN = """#include <torch/library.h>
TORCH_LIBRARY_FRAGMENT(unlearn_kernels, m) {
  m.def("dot_kernels() -> str", [] { return std::string("stand-in"); });
}
"""
"""C++."""


def start(cache: Path, before: str = "", **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", before + LOAD],
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip()


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "op.cpp").write_text(STAND_IN)
    return f"from pathlib import Path\nfrom unlearn_kernels import cpu_op\ncpu_op.SOURCES = Path({str(sources)!r})\n"


@needs_avx512
def test_without_a_compiler(tmp_path: Path) -> None:
    got = answer(start(tmp_path, CXX="no-such-compiler"))
    assert got == (
        "False|plain torch: the C++ op could not be built: no-such-compiler is not on PATH; install g++ and ninja"
    )
    assert "c++ is not on PATH" in answer(start(tmp_path, PATH=""))


@needs_avx512
def test_when_compilation_fails(tmp_path: Path, stand_in: str) -> None:
    (tmp_path / "sources" / "op.cpp").write_text("this is no C++\n")
    got = answer(start(tmp_path / "cache", before=stand_in))
    assert got.startswith("False|plain torch: the C++ op could not be built: ")
    assert "error:" in got
    assert "\n" not in got


def test_without_the_instructions(tmp_path: Path) -> None:
    got = answer(start(tmp_path, ATEN_CPU_CAPABILITY="avx2"))
    assert got == "False|plain torch: the C++ op needs AVX-512, this CPU has AVX2"
    assert not list(tmp_path.iterdir())


@needs_avx512
def test_without_a_writable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "False|plain torch: the C++ op could not be built: " in answer(start(tmp_path / "file"))


@pytest.mark.usefixtures("cpp_op")
def test_a_killed_build_wedges_nobody_and_processes_share_one_build(tmp_path: Path, stand_in: str) -> None:
    """torch's lock file outlives a killed build; the next process would wait for it without end."""
    killed = start(tmp_path / "cache", before=stand_in)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cache/*/lock")):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(tmp_path.glob("cache/*/lock"))

    together = [start(tmp_path / "cache", before=stand_in) for _ in range(2)]
    assert [answer(process) for process in together] == ["True|C++ op (stand-in)"] * 2
    log = next(tmp_path.glob("cache/*/.ninja_log")).read_text()
    assert log.count(".so\t") == 1, "linked twice"
    # Built once, it needs no compiler.
    assert answer(start(tmp_path / "cache", before=stand_in, PATH="")) == "True|C++ op (stand-in)"
