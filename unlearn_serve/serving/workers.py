"""All workers of one server, over all of its engines: a call reaches each of them, and each has to answer."""

from typing import TYPE_CHECKING, Any, cast

from unlearn_serve.errors import NotEnforced, SwapError
from unlearn_serve.serving.answers import failure_of
from unlearn_serve.serving.vllm_internals import call_workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.engine.protocol import EngineClient

    from unlearn_serve.serving.worker import WorkerStatus


class Workers:
    """The workers behind one engine client, in order of engine and rank."""

    def __init__(self, engine: "EngineClient") -> None:
        self._engine = engine

    async def call(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every worker; returns what each answered.

        Raises:
            SwapError: it failed in some workers, which the message names. All others have carried it out.
            Exception: an engine is gone, or a worker.
        """
        engines = await call_workers(self._engine, method, args)
        found = [(engine, rank, one) for engine, ranks in enumerate(engines) for rank, one in enumerate(ranks)]
        failed = [
            f"{name_of(engine, rank, len(engines))}: {error}"
            for engine, rank, one in found
            if (error := failure_of(one)) is not None
        ]
        if failed:
            raise SwapError("; ".join(failed))
        return [one for _, _, one in found]

    async def status(self) -> "list[WorkerStatus]":
        """Ask every worker what it serves.

        Raises:
            NotEnforced: a worker has no sites, or no extension that could tell.
        """
        try:
            return cast("list[WorkerStatus]", await self.call("unlearn_status"))
        except Exception as error:  # vLLM raises whatever its executor met; none of it is a status
            raise NotEnforced(f"the workers cannot report an enforced release: {error}") from error


def name_of(engine: int, rank: int, engines: int) -> str:
    """Return how messages name a worker: by its rank, and by its engine where there are several `engines`."""
    return f"worker {rank}" if engines == 1 else f"worker {rank} of engine {engine}"


def names_of(chosen: "Sequence[WorkerStatus]", workers: "Sequence[WorkerStatus]") -> str:
    """Return how messages name some of all `workers`."""
    engines = len({worker["engine"] for worker in workers})
    return ", ".join(name_of(worker["engine"], worker["rank"], engines) for worker in chosen)
