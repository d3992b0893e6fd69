"""How a worker answers a remote call: with its value, or with why it failed. It never raises.

vLLM 0.32's executor of several workers (`MultiprocExecutor.collective_rpc`) reads their answers one by one and stops at
the first that was an exception. What the workers behind it answered stays in their queues, and is taken for their
answer to the next call, and so on for good: a flip that failed would then be seen one call too late.
"""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypedDict, TypeVar

logger = logging.getLogger("vllm.unlearn_serve")

P = ParamSpec("P")
R = TypeVar("R")


class Failure(TypedDict):
    """What a call that failed answers."""

    unlearn_failed: str
    """The error's name and message."""


def answers(call: Callable[P, R]) -> Callable[P, R | Failure]:
    """Let a remote call answer with its error instead of raising it."""

    @wraps(call)
    def answer(*args: P.args, **kwargs: P.kwargs) -> R | Failure:
        try:
            return call(*args, **kwargs)
        except Exception as error:  # whatever it was: raised, it would be lost, see above
            logger.exception("unlearn-serve: %s failed", call.__name__)
            return Failure(unlearn_failed=f"{type(error).__name__}: {error}")

    return answer


def failure_of(answer: Any) -> str | None:
    """Return why a call failed; None where `answer` is its value."""
    return answer["unlearn_failed"] if isinstance(answer, dict) and "unlearn_failed" in answer else None
