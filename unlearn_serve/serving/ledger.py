"""Counts the tokens that were computed, and the requests that finished, under each release.

Entry point `vllm.stat_logger_plugins`; runs in the API server's process, where the follower names what is live.
"""

from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import StatLoggerBase

from unlearn_serve.serving import metrics

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats


class TokenLedger(StatLoggerBase):  # type: ignore[misc]  # mypy does not follow vllm
    """Adds each engine step to the release that was live in it."""

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
            metrics.count_step(
                iteration_stats.num_prompt_tokens,
                iteration_stats.num_generation_tokens,
                [str(request.finish_reason) for request in iteration_stats.finished_requests],
            )
        if scheduler_stats is not None:
            metrics.ROUTES_RUNNING.set(len(scheduler_stats.running_lora_adapters))

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
