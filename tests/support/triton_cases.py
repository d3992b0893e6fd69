"""Runs the Triton launcher against the fp32 reference, in a process of its own.

The interpreter is chosen when triton is imported, and the rest of the suite must not get it: so cases run in a spawned
child that imports triton under TRITON_INTERPRET=1, or in one that has a GPU.
"""

from dataclasses import dataclass

import torch

from unlearn_kernels import apply_unlearning_reference

NAN = float("nan")
# One rounding of the bottleneck and one of the result (the interpreter truncates where a GPU rounds to nearest),
# relative to values of about 1, and of a sum of deltas where a token has several slots.
TOLERANCE = {"fp32": 2e-5, "bf16": 4e-2, "fp16": 5e-3}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BITS = {2: torch.int16, 4: torch.int32}
SLOTS = 6


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of the launcher; ranks of the slots run from 0 over odd ones up to `rank`."""

    tokens: int
    d: int = 64
    rank: int = 24
    dtype: str = "fp32"
    pattern: str = "mixed"
    slots_a_token: int = 1
    routed: bool = False
    int64: bool = False
    device: str = "cpu"
    seed: int = 0
    config: tuple[tuple[str, int], ...] = ()
    """Launch parameters in place of the table's."""


def routing(pattern: str, tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Slots [tokens] as in Punica's benchmarks, and as prefill and a set of slots bring them."""
    match pattern:
        case "none":
            return torch.full((tokens,), -1)
        case "one":
            return torch.full((tokens,), SLOTS - 1)
        case "distinct":
            return torch.arange(tokens) % SLOTS
        case "skewed":
            return torch.where(torch.rand(tokens, generator=generator) < 0.9, SLOTS - 1, 1)
        case "zipf":
            weights = 1.0 / torch.arange(1, SLOTS + 2)
            if not tokens:
                return torch.zeros(0, dtype=torch.int64)
            return torch.multinomial(weights, tokens, replacement=True, generator=generator) - 1
        case "runs":
            return torch.arange(tokens) * 4 // max(tokens, 1) + 1
        case "mixed":
            return torch.randint(-1, SLOTS, (tokens,), generator=generator)
    raise AssertionError(pattern)


def check(case: Case) -> None:
    """Launch `case` out of place and in place; raise AssertionError where it differs from the reference."""
    from unlearn_kernels.launch_plan import LaunchConfig
    from unlearn_kernels.triton_launch import INTERPRETED, launch

    assert (case.device == "cpu") == INTERPRETED, "the child has the wrong triton"
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(case.seed)
    dtype, tokens, d = DTYPES[case.dtype], case.tokens, case.d
    ranks = torch.tensor([0, 1, case.rank // 2 | 1, case.rank // 8 * 8, case.rank - 1, case.rank], dtype=torch.int32)
    codes = torch.tensor([3, 0, 1, 2, 3, 3], dtype=torch.int32)
    w_down = torch.full((SLOTS, case.rank, d), NAN, dtype=dtype)
    w_up = torch.full((SLOTS, d, case.rank), NAN, dtype=dtype)
    for slot, rank in enumerate(ranks.tolist()):
        w_down[slot, :rank] = (torch.randn(rank, d, generator=generator) / d**0.5).to(dtype)
        w_up[slot, :, :rank] = (torch.randn(d, rank, generator=generator) / max(rank, 1) ** 0.5).to(dtype)

    columns = [routing(case.pattern, tokens, generator) for _ in range(case.slots_a_token)]
    slots = torch.stack(columns, dim=1) if case.slots_a_token > 1 else columns[0]
    slot_of_token = slots.to(torch.int64 if case.int64 else torch.int32)
    routes = None
    if case.routed:  # routes count down where slots count up, and the default takes slot 2
        routes = torch.tensor([2, *range(SLOTS - 1, -1, -1)], dtype=torch.int32)
        slots = torch.where(slots < 0, 2, SLOTS - 1 - slots)
    reading = (slot_of_token, ranks, codes)
    weights = (w_down, w_up)

    # Both x and out lie in the middle of NaN: what is read or written outside shows.
    surround = torch.full((tokens + 2, d + 16), NAN, dtype=dtype)
    surround[1:-1, 8:-8] = torch.randn(tokens, d, generator=generator).to(dtype)
    x = surround[1:-1, 8:-8]
    if tokens > 2:
        x[2, 3] = torch.inf  # must stay in its row
    expected = apply_unlearning_reference(x, *weights, slots, ranks, codes)

    on = torch.device(case.device)
    config = LaunchConfig(**dict(case.config)) if case.config else None
    moved = [tensor.to(on) for tensor in (*weights, *reading)]
    moved_routes = None if routes is None else routes.to(on)

    def run(source: torch.Tensor, target: torch.Tensor) -> None:
        launch(source[1:-1, 8:-8], *moved, moved_routes, target[1:-1, 8:-8], config=config)

    source, target = surround.to(on), torch.full_like(surround, NAN, device=on)
    run(source, target)
    assert _same_bits(source.cpu(), surround), "x was written"
    got = target.cpu()
    inside = got[1:-1, 8:-8]
    _assert_agrees(inside, expected, x, case)
    alive = (slots >= 0) & (ranks[slots.clamp(min=0)] > 0)
    untouched = ~(alive.any(dim=1) if alive.ndim == 2 else alive)
    assert _same_bits(inside[untouched], x[untouched]), "a token without a layer was changed"
    got[1:-1, 8:-8] = NAN
    assert _same_bits(got, torch.full_like(got, NAN)), "written outside out"

    if config is None or config.alone:
        run(source, source)
        _assert_agrees(source.cpu()[1:-1, 8:-8], expected, x, case)
        assert _same_bits(source.cpu()[1:-1, 8:-8][untouched], x[untouched]), "in place: an untouched token was changed"


def _assert_agrees(got: torch.Tensor, expected: torch.Tensor, x: torch.Tensor, case: Case) -> None:
    tolerance = TOLERANCE[case.dtype] * case.slots_a_token
    finite = torch.isfinite(x).all(dim=1)
    torch.testing.assert_close(got[finite].float(), expected[finite].float(), rtol=tolerance, atol=tolerance)
    # Where x holds an infinity the reference has inf or NaN, by the order of its sums.
    assert torch.equal(torch.isfinite(got[~finite]), torch.isfinite(expected[~finite]))


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    as_bits = BITS[a.element_size()]
    return torch.equal(a.contiguous().view(as_bits), b.contiguous().view(as_bits))
