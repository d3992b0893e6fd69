"""Assertions that name what a vLLM release moved."""

import inspect
from collections.abc import Callable
from typing import Any

import vllm


def require(holds: object, moved: str) -> None:
    assert holds, f"vLLM {vllm.__version__} moved this: {moved}"


def require_parameters(function: Callable[..., Any], *names: str) -> None:
    got = list(inspect.signature(function).parameters)
    require(set(names) <= set(got), f"{function.__qualname__}: expected parameters {list(names)}, got {got}")
