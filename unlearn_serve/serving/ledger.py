"""Counts the tokens that were computed under each release.

Entry point `vllm.stat_logger_plugins`; runs in the API server's process, where the follower names what is live.
"""

from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import StatLoggerBase

from unlearn_serve.serving import metrics
from unlearn_serve.serving.live import PLAIN, Live

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

_labels = (PLAIN, "0")


def count_under(live: Live) -> None:
    """Attribute tokens to `live` from now on; called while generation is paused."""
    global _labels
    _labels = (live.release, str(live.generation))


class TokenLedger(StatLoggerBase):  # type: ignore[misc]  # mypy does not follow vllm
    """Adds each engine step's tokens to the release that was live in it."""

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
            metrics.count(metrics.TOKENS, (*_labels, "prompt"), iteration_stats.num_prompt_tokens)
            metrics.count(metrics.TOKENS, (*_labels, "generated"), iteration_stats.num_generation_tokens)
        if scheduler_stats is not None:
            metrics.ROUTES_RUNNING.set(len(scheduler_stats.running_lora_adapters))

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
