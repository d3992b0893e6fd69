"""Products of bfloat16 in float32: rounded once, the same forwards and backwards, and nothing else is touched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unlearn_serve.bf16 import PRODUCTS, ProductsInFloat32, engine_dtype, fast_bf16


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@pytest.mark.parametrize(
    ("product", "shapes"),
    [
        (torch.mm, ((5, 64), (64, 7))),
        (torch.bmm, ((3, 5, 64), (3, 64, 7))),
        (torch.addmm, ((7,), (5, 64), (64, 7))),
        (torch.baddbmm, ((3, 5, 7), (3, 5, 64), (3, 64, 7))),
    ],
)
def test_a_product_is_float32s_rounded_once(
    product: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...]
) -> None:
    given = [drawn(*shape) for shape in shapes]
    with ProductsInFloat32():
        found = product(*given)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found, product(*(one.float() for one in given)).bfloat16(), rtol=0, atol=0)


def test_gradients_of_a_network_are_those_of_float32() -> None:
    """A linear map, attention and a linear map; within what bfloat16 between them rounds off."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(32, 96), nn.Linear(32, 16)])

    def passed(x: Tensor) -> Tensor:
        q, k, v = (part.view(2, 9, 4, 8).transpose(1, 2) for part in model[0](x).chunk(3, dim=-1))
        return model[1](F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 9, 32))

    def gradients(x: Tensor) -> list[Tensor]:
        model.zero_grad()
        passed(x).float().square().mean().backward()
        return [one.grad.float() for one in model.parameters() if one.grad is not None]

    x = drawn(2, 9, 32)
    model.to(torch.bfloat16)
    with ProductsInFloat32():
        found = gradients(x)
    model.to(torch.float32)
    expected = gradients(x.float())
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("graph", [torch.no_grad, torch.inference_mode])
def test_no_product_of_bfloat16_is_left_to_torch(graph: Callable[[], Any]) -> None:
    """Whichever way a module is run: under inference_mode, whole maps and attention arrive."""
    seen = []

    class Below(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append((func, getattr(args[0], "dtype", None)))
            return func(*args, **(kwargs or {}))

    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).bfloat16()
    with Below(), ProductsInFloat32(), graph():  # type: ignore[no-untyped-call]  # torch's own __init__
        q = drawn(1, 2, 5, 8)
        F.scaled_dot_product_attention(q, q, q)
        layer(drawn(1, 5, 16)) @ drawn(16, 3)
    products = [(func, dtype) for func, dtype in seen if func in PRODUCTS]
    assert len(products) >= 5
    assert [func for func, dtype in products if dtype is torch.bfloat16] == []


def test_float32_and_other_ops_are_left_alone() -> None:
    a, b = torch.randn(4, 4), torch.randn(4, 4)
    with ProductsInFloat32():
        assert torch.equal(a @ b, torch.mm(a, b))
        assert (a @ b).dtype is torch.float32
        assert torch.equal(a.bfloat16() + 1, a.bfloat16() + 1)


@pytest.mark.parametrize(("capability", "widened"), [("AVX2", True), ("AVX512", False), ("DEFAULT", False)])
def test_only_where_torch_is_slow_and_once(monkeypatch: pytest.MonkeyPatch, capability: str, widened: bool) -> None:
    seen = []
    run = ProductsInFloat32.__torch_dispatch__
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(
        ProductsInFloat32, "__torch_dispatch__", lambda *args, **kwargs: seen.append(args[1]) or run(*args, **kwargs)
    )

    @fast_bf16()
    def inside() -> Tensor:
        with fast_bf16():
            return drawn(4, 4) @ drawn(4, 4)

    inside()
    assert len([op for op in seen if op in PRODUCTS]) == int(widened)


@pytest.mark.parametrize(
    ("capability", "cuda", "dtype"),
    [("AVX2", False, "float32"), ("AVX2", True, "bfloat16"), ("AVX512", False, "bfloat16")],
)
def test_servers_compute_in_float32_on_such_a_cpu_alone(
    monkeypatch: pytest.MonkeyPatch, capability: str, cuda: bool, dtype: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert engine_dtype() == dtype
