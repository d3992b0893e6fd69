"""The two paths behind the public op on a CPU: each test that asks for `apply` runs on both."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from unlearn_kernels import apply_unlearning, apply_unlearning_, load_cpu_op, op

Op = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def cpp_op() -> None:
    """Put the C++ op behind the public one, for this process and for good."""
    path = load_cpu_op()
    if not path.loaded:
        pytest.skip(path.description)


@pytest.fixture(params=["torch", "c++"])
def path(request: pytest.FixtureRequest) -> str:
    if request.param == "c++":
        request.getfixturevalue("cpp_op")
    return str(request.param)


@pytest.fixture
def apply(path: str) -> Op:
    return apply_unlearning if path == "c++" else op._apply


@pytest.fixture
def apply_(path: str) -> Op:
    def plain(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        op._apply_(x, *rest)
        return x

    return apply_unlearning_ if path == "c++" else plain
