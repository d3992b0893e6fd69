"""The tuner's search and the table it makes, on a made-up clock; the real clock needs a GPU."""

from dataclasses import replace

import pytest

pytest.importorskip("triton")

from benchmarks.kernel_tune import descend, tune
from unlearn_kernels.launch_plan import LaunchConfig


def clock(config: LaunchConfig, tokens: int, d: int, bottleneck: int) -> float | None:
    if config.warps == 8 and config.stages == 4:
        return None  # stands for wrong results: must never be chosen, however fast
    return 100 / (config.parts * config.ctas * config.stages * config.warps)


def test_finds_the_fastest_right_config_and_one_for_in_place() -> None:
    rows = tune("sm_90", clock)
    assert {row.config.parts for row in rows} == {1, 8}
    for shared, alone in zip(rows[::2], rows[1::2], strict=True):
        assert (shared.config.parts, shared.config.ctas) == (8, 8), "first, so that it is taken out of place"
        assert alone.config.alone
        assert (alone.config.warps, alone.config.stages) != (8, 4)
        assert replace(shared, config=alone.config) == alone, "both are for the same sizes"
    assert rows[-1].max_tokens is None
    assert rows[-1].max_d is None


def test_no_clusters_where_the_architecture_has_none() -> None:
    assert {row.config.ctas for row in tune("sm_80", clock)} == {1}


def test_a_kernel_that_is_wrong_from_the_start_is_not_tuned() -> None:
    start = LaunchConfig(tokens=16, groups=1, parts=1, down_columns=64, up_columns=64, ctas=1, warps=4, stages=2)
    with pytest.raises(RuntimeError, match="expected the shipped config to be right and to fit"):
        descend(start, ["warps"], lambda _: None)
