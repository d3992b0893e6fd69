"""How the Triton kernel is launched for given shapes: the launch table, and the plan made from it.

Pure arithmetic on shapes, with neither torch nor triton: the launcher, the ahead-of-time check and the tuner all
launch what `plan` says, so what is checked is what runs.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

TABLE = "launch_table.json"
MAX_BOTTLENECK = 256
"""Widest bottleneck of one launch. A larger set of slots takes several launches, which add up."""


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """The launch parameters that a machine may want different; all are powers of two but `groups` and `parts`."""

    tokens: int
    """Tokens a tile."""
    groups: int
    """Programs a tile, over which its groups of tokens with equal slots are dealt out."""
    parts: int
    """Programs that share out the output columns of a group; each computes the down-projection for itself."""
    down_columns: int
    """Columns of x and W_down a step."""
    up_columns: int
    """Rows of W_up a step."""
    ctas: int
    """Thread blocks of the cluster that is one program; above 1 on sm_90 and later only."""
    warps: int
    """Warps of a thread block."""
    stages: int
    """Depth of the software pipelines."""

    @property
    def alone(self) -> bool:
        """Whether one thread block reads and writes all columns of a group, as it must in place."""
        return self.parts == self.ctas == 1


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What a launch depends on. Nothing here is read from a tensor's data."""

    tokens: int
    d: int
    rank: int
    """The buffers' rank R."""
    slots: int
    """Slots a token, K."""
    element_size: int
    arch: str
    x_stride: int
    out_stride: int
    slot_strides: tuple[int, int]
    routed: bool
    in_place: bool


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of the launch table. The first row that fits is taken; in place, the first that fits and is `alone`."""

    arch: str
    """sm_80, sm_90, sm_100 or gfx942; sm_80 stands for every other NVIDIA architecture, gfx942 for every other AMD."""
    element_size: int
    """Bytes of an element of x: 2 or 4."""
    max_tokens: int | None
    max_d: int | None
    max_bottleneck: int | None
    config: LaunchConfig

    def fits(self, shapes: Shapes, bottleneck: int) -> bool:
        """Whether the row is for `shapes`."""
        limits = ((shapes.tokens, self.max_tokens), (shapes.d, self.max_d), (bottleneck, self.max_bottleneck))
        return (
            (self.arch, self.element_size) == (shapes.arch, shapes.element_size)
            and all(limit is None or size <= limit for size, limit in limits)
            and (self.config.alone or not shapes.in_place)
        )


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of `apply_kernel`."""

    grid: tuple[int, int, int]
    constants: Mapping[str, int | bool]
    """The kernel's constexpr arguments, all but UPCAST."""
    options: Mapping[str, int | bool]
    """The compiler's options."""


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two >= n."""
    return 1 << (n - 1).bit_length()


def read_table(path: Path | None = None) -> tuple[TableRow, ...]:
    """Return the table at `path`, by default the one the package ships.

    Raises:
        TypeError: a row with an unknown or missing field.
    """
    text = path.read_text() if path else resources.files("unlearn_kernels").joinpath(TABLE).read_text()
    return tuple(TableRow(**{**row, "config": LaunchConfig(**row["config"])}) for row in json.loads(text))


def write_table(rows: tuple[TableRow, ...], path: Path) -> None:
    """Write `rows`, one a line."""
    path.write_text("[\n" + ",\n".join("  " + json.dumps(asdict(row)) for row in rows) + "\n]\n")


_table = lru_cache(maxsize=1)(read_table)


def choose(shapes: Shapes, bottleneck: int) -> LaunchConfig:
    """Return the config of the first row of the launch table that fits.

    Raises:
        ValueError: no row fits.
    """
    for row in _table():
        if row.fits(shapes, bottleneck):
            return row.config
    raise ValueError(
        f"launch table: expected a row for {shapes.arch}, {shapes.element_size} bytes, {shapes.tokens} tokens, "
        f"d {shapes.d}, bottleneck {bottleneck}, got none: write the table anew with benchmarks/kernel_tune.py"
    )


@lru_cache(maxsize=1024)
def plan(shapes: Shapes, config: LaunchConfig | None = None) -> tuple[Launch, ...]:
    """Return the launches that apply unlearning to `shapes`: one, unless a set of slots exceeds MAX_BOTTLENECK.

    The first launch adds to x, the others to what the ones before left in out.
    """
    block_rank = max(8 if shapes.slots > 1 else 16, next_power_of_two(shapes.rank))
    slots_a_launch = min(shapes.slots, max(1, MAX_BOTTLENECK // block_rank))
    launches = []
    for first in range(0, shapes.slots, slots_a_launch):
        slots = min(slots_a_launch, shapes.slots - first)
        bottleneck = max(16, block_rank * next_power_of_two(slots))
        chosen = config or choose(shapes, bottleneck)
        assert chosen.alone or not shapes.in_place
        launches.append(_launch(shapes, chosen, first, slots, block_rank, bottleneck))
    return tuple(launches)


def _launch(s: Shapes, config: LaunchConfig, first: int, slots: int, block_rank: int, bottleneck: int) -> Launch:
    return Launch(
        grid=(-(-s.tokens // config.tokens), min(config.groups, config.tokens, s.tokens), config.parts),
        constants={
            "D": s.d,
            "R": s.rank,
            "FIRST_K": first,
            "K": slots,
            "BLOCK_RANK": block_rank,
            "J": bottleneck,
            "X_STRIDE": s.x_stride,
            "RESIDUAL_STRIDE": s.x_stride if first == 0 else s.out_stride,
            "OUT_STRIDE": s.out_stride,
            "SLOT_STRIDE": s.slot_strides[0],
            "SLOT_STRIDE_K": s.slot_strides[1],
            "ROUTED": s.routed,
            "COPY": first == 0 and not s.in_place,
            "B": config.tokens,
            "C_DOWN": config.down_columns,
            "C_UP": config.up_columns,
            "STAGES": config.stages,
        },
        options={
            "num_warps": config.warps,
            "num_stages": config.stages,
            "num_ctas": config.ctas,
            "enable_fp_fusion": True,
        },
    )
