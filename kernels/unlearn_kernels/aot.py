"""Ahead-of-time compilation of the Triton kernel for machines that are not here: what it needs, and whether it fits.

Compiles exactly what `triton_launch.launch` would launch, by the same plan, and reads resources out of the binary with
the tools that Triton bundles. No GPU is needed, and nothing is said about speed.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from unlearn_kernels._triton_body import apply_kernel
from unlearn_kernels.launch_plan import Launch, LaunchConfig, Shapes, plan

KIB = 1024
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 99 * KIB, "sm_90": 227 * KIB, "sm_100": 227 * KIB, "gfx942": 64 * KIB}
"""Bytes of shared memory a block may have. For sm_80 the limit of sm_86, sm_89 and sm_120, which use its rows; the
A100 itself has 163 KiB."""
TENSOR_MEMORY_LIMIT = 512
"""Columns of Blackwell's tensor memory."""
ELEMENT_SIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
_POINTERS = ("x", "residual", "out", "w_down", "w_up")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point of the matrix: contiguous tensors, 16-byte aligned, as serving has them."""

    arch: str
    dtype: str
    tokens: int
    d: int
    rank: int
    slots: int = 1
    routed: bool = True
    in_place: bool = False

    @property
    def shapes(self) -> Shapes:
        """The same, as the launcher sees it."""
        return Shapes(
            tokens=self.tokens,
            d=self.d,
            rank=self.rank,
            slots=self.slots,
            element_size=ELEMENT_SIZE[self.dtype],
            arch=self.arch,
            x_stride=self.d,
            out_stride=self.d,
            slot_strides=(self.slots, 1),
            routed=self.routed,
            in_place=self.in_place,
        )


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one compiled kernel takes. Instruction counts are of the code, not of one execution."""

    registers: int
    """A thread's; on AMD vector registers."""
    stack_bytes: int
    """A thread's local memory: stack and spilled registers."""
    spills: int
    """Instructions that spill or fill; on AMD spilled registers."""
    shared_bytes: int
    tensor_memory_columns: int
    loads: int
    """Global loads, asynchronous copies to shared memory included."""
    narrow_loads: int
    """Those of 2 bytes."""
    dots: int
    """Tensor-core instructions."""
    cluster_barriers: int

    def problems(self, arch: str) -> list[str]:
        """Say what `arch` would not bear: nothing, or sentences of expected and got."""
        found = []
        if self.stack_bytes or self.spills:
            found.append(f"expected no spills, got {self.stack_bytes} bytes of stack and {self.spills} spills")
        if self.shared_bytes > SHARED_LIMIT[arch]:
            found.append(f"expected at most {SHARED_LIMIT[arch]} bytes of shared memory, got {self.shared_bytes}")
        if self.tensor_memory_columns > TENSOR_MEMORY_LIMIT:
            found.append(
                f"expected at most {TENSOR_MEMORY_LIMIT} columns of tensor memory, got {self.tensor_memory_columns}"
            )
        return found


def compile_case(case: Case, config: LaunchConfig | None = None) -> list[Resources]:
    """Compile each launch of `case` and return its resources; `config` stands in for the launch table's."""
    return [_resources(case.arch, _compile(case, launch)) for launch in plan(case.shapes, config)]


def _compile(case: Case, launch: Launch) -> Any:
    constants = {**launch.constants, "UPCAST": False}
    signature = {}
    for name in apply_kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in _POINTERS:
            signature[name] = f"*{case.dtype}"
        else:
            signature[name] = "i32" if name == "T" else "*i32"
    aligned: dict[tuple[int], list[list[object]]] = {
        (index,): [["tt.divisibility", 16]] for index, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    source = ASTSource(apply_kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=TARGETS[case.arch], options=dict(launch.options))


def _resources(arch: str, kernel: Any) -> Resources:
    tensor_memory = getattr(kernel.metadata, "tmem_size", None) or 0
    if arch.startswith("gfx"):
        code = kernel.asm["amdgcn"]
        return Resources(
            registers=_number(code, r"\.vgpr_count:\s+(\d+)") + _number(code, r"\.agpr_count:\s+(\d+)"),
            stack_bytes=_number(code, r"\.private_segment_fixed_size:\s+(\d+)"),
            spills=_number(code, r"\.vgpr_spill_count:\s+(\d+)"),
            shared_bytes=kernel.metadata.shared,
            tensor_memory_columns=tensor_memory,
            loads=_count(code, r"\b(?:global|buffer)_load_"),
            narrow_loads=_count(code, r"\b(?:global|buffer)_load_(?:\w+_)?(?:ushort|short|u16|b16|d16)"),
            dots=_count(code, r"\bv_mfma_"),
            cluster_barriers=0,
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage = _tool([triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin.name])
        code = _tool([triton.knobs.nvidia.nvdisasm.path, "-c", cubin.name])
    return Resources(
        registers=_number(usage, r"REG:(\d+)"),
        stack_bytes=_number(usage, r"STACK:(\d+)") + _number(usage, r"LOCAL:(\d+)"),
        spills=_count(code, r"\b(?:STL|LDL)\b"),
        shared_bytes=kernel.metadata.shared,
        tensor_memory_columns=tensor_memory,
        loads=_count(code, r"\bLDG"),
        narrow_loads=_count(code, r"\bLDG\S*\.[US]16"),
        dots=_count(code, r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b"),
        cluster_barriers=_count(code, r"\bUCGABAR_WAIT"),
    )


def _tool(command: Iterable[str]) -> str:
    return subprocess.run(list(command), check=True, capture_output=True, text=True).stdout


def _number(text: str, pattern: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"compiler output: expected {pattern!r}, got none")
    return int(match[1])


def _count(text: str, pattern: str) -> int:
    return len(re.findall(pattern, text))
