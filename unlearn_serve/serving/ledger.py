"""Counts the tokens that were computed, and the requests that finished, under each release, named by a request or not.

Entry point `vllm.stat_logger_plugins`; runs in the API server's process, where the follower names what is live.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from vllm.v1.metrics.loggers import StatLoggerBase

from unlearn_serve.serving import metrics
from unlearn_serve.serving.route_tokens import RouteTokens, Share

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats


class TokenLedger(StatLoggerBase):  # type: ignore[misc]  # mypy does not follow vllm
    """Adds each engine step to the release that was live in it, but for what was computed under routes."""

    routes: ClassVar[RouteTokens | None] = None
    """Set when the server has routes; vLLM makes its loggers before."""

    def __init__(self, vllm_config: "VllmConfig", engine_index: int = 0) -> None:
        del vllm_config, engine_index

    def record(
        self,
        scheduler_stats: "SchedulerStats | None",
        iteration_stats: "IterationStats | None",
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Count one step."""
        del mm_cache_stats, engine_idx
        if iteration_stats is not None:
            for release, share in self._shares(iteration_stats).items():
                metrics.count_step(share.prompt, share.generated, share.finished, route=release)
        if scheduler_stats is not None:
            metrics.ROUTES_RUNNING.set(len(scheduler_stats.running_lora_adapters))

    def _shares(self, step: "IterationStats") -> dict[str | None, Share]:
        if self.routes is not None:
            return self.routes.split(step)
        reasons = [str(request.finish_reason) for request in step.finished_requests]
        return {None: Share(prompt=step.num_prompt_tokens, generated=step.num_generation_tokens, finished=reasons)}

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
