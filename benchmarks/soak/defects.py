"""Faults seeded in a server, to show that the soak sees them: `python -m benchmarks.soak run --defect NAME`.

`python -m benchmarks.soak.defects NAME ARGS` is `vllm serve ARGS` with the defect. Product code is never changed.
"""

import sys
from collections.abc import Callable
from typing import Any

from unlearn_serve.serving.swap import Swapper
from unlearn_serve.serving.vllm_internals import run_vllm_serve


def _keep_stale_kv() -> None:
    """Leave out step 4 of the swap: keys and values of the earlier release are used on."""

    async def forget_nothing(self: Swapper) -> None:
        pass

    Swapper._forget_kv = forget_nothing  # type: ignore[method-assign]  # the defect


class _NeverFlips:
    """An engine client that loses the order to flip."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def collective_rpc(self, method: str, *arguments: Any, **named: Any) -> Any:
        return [] if method == "unlearn_flip" else await self._engine.collective_rpc(method, *arguments, **named)


def _name_what_is_not_live() -> None:
    """Leave out step 3: the new release is named, the earlier one computes."""
    begin = Swapper.__init__

    def with_deaf_engine(self: Swapper, engine: Any, **settings: Any) -> None:
        begin(self, _NeverFlips(engine), **settings)

    Swapper.__init__ = with_deaf_engine  # type: ignore[method-assign,assignment]  # the defect


DEFECTS: dict[str, Callable[[], None]] = {"stale-kv": _keep_stale_kv, "never-flips": _name_what_is_not_live}


if __name__ == "__main__":
    DEFECTS[sys.argv[1]]()
    run_vllm_serve(sys.argv[2:])
