"""bfloat16 on x86 CPUs without instructions for it, where torch multiplies it many times as slowly as float32."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu.default
PRODUCTS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten.linear.default,  # under torch.inference_mode these three arrive whole, not as what they are made of
        _aten.matmul.default,
        _aten.scaled_dot_product_attention.default,
        _ATTENTION,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    }
)
"""What spends its time in matrix products, forwards and backwards."""

_active: ContextVar[bool] = ContextVar("fast_bf16", default=False)


class ProductsInFloat32(TorchDispatchMode):
    """Semantics: `C = bf16(f32(A) f32(B))` for the products of bfloat16 tensors.

    The factors' products are exact in float32, sums are float32, and what comes out is rounded once: the same as where
    bfloat16 has instructions. Attention's weights stay float32, which rounds less. Other ops run as they are.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one op."""
        given = dict(kwargs or {})
        if func not in PRODUCTS or args[0].dtype is not torch.bfloat16 or args[0].device.type != "cpu":
            return func(*args, **given)
        found = func(*map(_widened, args), **{name: _widened(value) for name, value in given.items()})
        if func is _ATTENTION:  # the second, for the backward pass, is float32 as it is
            return found[0].bfloat16(), found[1]
        return found.bfloat16() if isinstance(found, Tensor) else tuple(one.bfloat16() for one in found)


def slow_on_cpu() -> bool:
    """Say whether bfloat16 is slow on this CPU: with AVX2 and without AVX-512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def engine_dtype() -> str:
    """Return vLLM's `--dtype` for a bfloat16 checkpoint here: `float32` where it computes on such a CPU.

    vLLM's kernels are out of `fast_bf16`'s reach; a prompt of 256 tokens was seen to take a fifth of the time.
    """
    return "float32" if slow_on_cpu() and not torch.cuda.is_available() else "bfloat16"


@contextmanager
def fast_bf16() -> Iterator[None]:
    """Multiply bfloat16 as `ProductsInFloat32` does where torch's own way is slow.

    Elsewhere, and inside another such block, it does nothing. Also a decorator. Of this thread alone.
    """
    if _active.get() or not slow_on_cpu():
        yield
        return
    token = _active.set(True)
    try:
        with ProductsInFloat32():  # type: ignore[no-untyped-call]  # torch's own __init__
            yield
    finally:
        _active.reset(token)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.bfloat16 else value
