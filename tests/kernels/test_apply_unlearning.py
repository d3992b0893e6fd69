"""Both paths of the op against the fp32 reference, over routing patterns and awkward sizes."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearn_kernels import (
    ACTIVATIONS,
    activate,
    activation_code,
    apply_unlearning,
    apply_unlearning_reference,
)

Op = Callable[..., torch.Tensor]

# One rounding of the bottleneck and one of the result, relative to values of size about 1.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
SLOTS, RANK = 5, 24


def buffers(d: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Slots of ranks 0, 1, 7, 16, 24 with every activation; what lies past a slot's rank is NaN."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.tensor([0, 1, 7, 16, RANK], dtype=torch.int32)
    codes = torch.tensor([0, 1, 2, 3, 2], dtype=torch.int32)
    w_down = torch.full((SLOTS, RANK, d), float("nan"), dtype=dtype)
    w_up = torch.full((SLOTS, d, RANK), float("nan"), dtype=dtype)
    for slot, rank in enumerate(ranks.tolist()):
        w_down[slot, :rank] = (torch.randn(rank, d, generator=generator) / d**0.5).to(dtype)
        w_up[slot, :, :rank] = (torch.randn(d, rank, generator=generator) / max(rank, 1) ** 0.5).to(dtype)
    return w_down, w_up, ranks, codes


def routing(pattern: str, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    match pattern:
        case "none":
            slots = torch.full((tokens,), -1)
        case "one":
            slots = torch.full((tokens,), 3)
        case "distinct":
            slots = torch.arange(tokens) % SLOTS
        case "skewed":
            slots = torch.where(torch.rand(tokens, generator=generator) < 0.9, 4, 1)
        case "mixed":
            slots = torch.randint(-1, SLOTS, (tokens,), generator=generator)
        case _:
            raise AssertionError(pattern)
    return slots.to(torch.int32)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 7, 16, 33, 133])
@pytest.mark.parametrize("pattern", ["none", "one", "distinct", "skewed", "mixed"])
def test_agrees_with_reference(apply: Op, apply_: Op, pattern: str, tokens: int, dtype: torch.dtype) -> None:
    d = 64
    w_down, w_up, ranks, codes = buffers(d, dtype)
    x = torch.randn(tokens, d, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = x.clone()
    slots = routing(pattern, tokens)
    expected = apply_unlearning_reference(x, w_down, w_up, slots, ranks, codes)

    got = apply(x, w_down, w_up, slots, ranks, codes)

    torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(x, before), "the op must not mutate x"
    assert apply_(x, w_down, w_up, slots, ranks, codes) is x
    assert torch.equal(x, got), "the in-place form must give the same bits"


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_untouched_tokens_are_bit_identical(apply: Op, dtype: torch.dtype) -> None:
    w_down, w_up, ranks, codes = buffers(64, dtype)
    x = torch.randn(40, 64).to(dtype)
    x[3, 5] = float("nan")  # even a NaN must pass as it is
    slots = routing("mixed", 40)
    untouched = (slots == -1) | (slots == 0)  # slot 0 has rank 0
    assert 0 < int(untouched.sum()) < 40

    got = apply(x, w_down, w_up, slots, ranks, codes)

    as_bits = torch.int32 if dtype is torch.float32 else torch.int16
    assert torch.equal(got.view(as_bits)[untouched], x.view(as_bits)[untouched])


def test_zero_up_projection_changes_nothing_bit_for_bit(apply: Op) -> None:
    w_down, w_up, ranks, codes = buffers(64, torch.bfloat16)
    x = torch.randn(9, 64).to(torch.bfloat16)
    got = apply(x, w_down, torch.zeros_like(w_up), routing("one", 9), ranks, codes)
    assert torch.equal(got, x)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_set_of_slots_adds_up_deltas_of_the_same_input(apply: Op, dtype: torch.dtype) -> None:
    w_down, w_up, ranks, codes = buffers(64, dtype)
    x = torch.randn(6, 64).to(dtype)
    sets = torch.tensor([[1, 2], [3, -1], [-1, -1], [4, 4], [-1, 2], [0, 3]], dtype=torch.int32)
    expected = apply_unlearning_reference(x, w_down, w_up, sets, ranks, codes)
    got = apply(x, w_down, w_up, sets, ranks, codes)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])
    assert torch.equal(got[2], x[2])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_routes_name_slots_and_entry_0_is_the_default(apply: Op, apply_: Op, dtype: torch.dtype) -> None:
    """Off by one, a request without a route would escape the default release."""
    w_down, w_up, ranks, codes = buffers(64, dtype)
    x = torch.randn(6, 64).to(dtype)
    routes = torch.tensor([-1, 0, 1, 2, -1, 1])
    slot_of_route = torch.tensor([3, 1, -1, 4], dtype=torch.int32)
    direct = torch.tensor([3, 1, -1, 4, 3, -1])
    expected = apply_unlearning_reference(x, w_down, w_up, direct, ranks, codes)
    assert torch.equal(apply_unlearning_reference(x, w_down, w_up, routes, ranks, codes, slot_of_route), expected)
    for routing_dtype in (torch.int32, torch.int64):
        got = apply(x, w_down, w_up, routes.to(routing_dtype), ranks, codes, slot_of_route)
        assert torch.equal(got, apply(x, w_down, w_up, direct.to(routing_dtype), ranks, codes))
        torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert torch.equal(apply_(x.clone(), w_down, w_up, routes, ranks, codes, slot_of_route), got)


def test_rows_and_columns_of_a_larger_tensor(apply: Op, apply_: Op) -> None:
    """A site may be handed a slice; the result must not follow its strides."""
    w_down, w_up, ranks, codes = buffers(64, torch.float32)
    whole = torch.randn(14, 128)
    x, slots = whole[::2, 32:96], routing("mixed", 7)
    got = apply(x, w_down, w_up, slots, ranks, codes)
    assert got.is_contiguous()
    torch.testing.assert_close(got, apply_unlearning_reference(x, w_down, w_up, slots, ranks, codes))
    rest = whole.clone()
    apply_(x, w_down, w_up, slots, ranks, codes)
    assert torch.equal(x, got)
    rest[::2, 32:96] = got
    assert torch.equal(whole, rest)


def test_routing_buffer_may_be_longer_than_the_batch(apply: Op) -> None:
    w_down, w_up, ranks, codes = buffers(64, torch.float32)
    x = torch.randn(3, 64)
    long = routing("mixed", 50)
    assert torch.equal(apply(x, w_down, w_up, long, ranks, codes), apply(x, w_down, w_up, long[:3], ranks, codes))


@given(tokens=st.integers(0, 40), rank=st.integers(1, 256), d=st.sampled_from([8, 24, 576]), seed=st.integers(0, 99))
def test_any_rank(tokens: int, rank: int, d: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, d, generator=generator)
    w_down = torch.randn(2, rank, d, generator=generator) / d**0.5
    w_up = torch.randn(2, d, rank, generator=generator) / rank**0.5
    slots = torch.randint(-1, 2, (tokens,), generator=generator, dtype=torch.int32)
    rest = (slots, torch.tensor([rank, (rank + 1) // 2], dtype=torch.int32), torch.tensor([2, 1], dtype=torch.int32))
    torch.testing.assert_close(
        apply_unlearning(x, w_down, w_up, *rest),
        apply_unlearning_reference(x, w_down, w_up, *rest),
        rtol=1e-4,
        atol=1e-4,
    )


def test_compiled_graph_reads_routing_when_it_runs() -> None:
    """Baked-in routing would keep serving the release that was live at tracing time."""
    w_down, w_up, ranks, codes = buffers(64, torch.float32)
    slots = routing("none", 8)

    def block(x: torch.Tensor) -> torch.Tensor:
        return apply_unlearning(x * 2, w_down, w_up, slots, ranks, codes) + 1

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    x = torch.randn(8, 64)
    assert torch.equal(compiled(x), x * 2 + 1)
    slots.fill_(3)
    torch.testing.assert_close(compiled(x), block(x))
    assert not torch.equal(compiled(x), x * 2 + 1)


def test_passes_torchs_own_checks_of_a_custom_op() -> None:
    w_down, w_up, ranks, codes = buffers(64, torch.float32)
    w_down, w_up = w_down.nan_to_num(), w_up.nan_to_num()
    tests = ("test_schema", "test_faketensor")
    for slot_of_route in ((), (torch.tensor([2, 1, -1, 3, 4, 0], dtype=torch.int32),)):
        arguments = (torch.randn(8, 64), w_down, w_up, routing("mixed", 8), ranks, codes, *slot_of_route)
        torch.library.opcheck(torch.ops.unlearn_kernels.apply_unlearning.default, arguments, test_utils=tests)
        torch.library.opcheck(torch.ops.unlearn_kernels.apply_unlearning_.default, arguments, test_utils=tests)


def test_bad_arguments_are_named(apply: Op) -> None:
    w_down, w_up, ranks, codes = buffers(64, torch.float32)
    slots = routing("one", 4)
    good = torch.randn(4, 64)
    for arguments, message in [
        ((good[0], w_down, w_up, slots, ranks, codes), r"x: expected shape \(tokens, d\), got .64"),
        ((good[:, :32], w_down, w_up, slots, ranks, codes), "w_down: expected last dimension 32"),
        ((good, w_down[0], w_up, slots, ranks, codes), "w_down: expected last dimension 64 as x, got shape .24, 64"),
        ((good, w_down, w_up[:, :, :3], slots, ranks, codes), r"w_up: expected shape \(5, 64, 24\)"),
        ((good.half(), w_down, w_up, slots, ranks, codes), "expected one dtype, got x"),
        ((good, w_down, w_up, slots[:2], ranks, codes), "slot_of_token: expected at least 4 rows"),
        ((good, w_down, w_up, slots.half(), ranks, codes), "slot_of_token: expected int32 or int64, got"),
        ((good, w_down, w_up, slots, ranks[:2], codes), r"rank_of_slot: expected int32 of shape \(5,\)"),
        ((good, w_down, w_up, slots, ranks, codes.long()), r"activation_of_slot: expected int32 of shape \(5,\)"),
        ((good, w_down, w_up, slots, ranks, codes, slots.long()), r"slot_of_route: expected int32 of shape \(routes"),
        ((good, w_down, w_up, slots[:, None], ranks, codes, slots), "slot_of_token: expected one route a token"),
        ((good[:, :4], w_down[..., :4], w_up[:, :4], slots, ranks, codes), "d to be a multiple of 8, got 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            apply(*arguments)


def test_values_out_of_range_are_named(apply: Op) -> None:
    """In C++ they would be reads of foreign memory."""
    w_down, w_up, ranks, codes = buffers(64, torch.float32)
    x, slots = torch.randn(4, 64), routing("one", 4)

    def with_last(values: torch.Tensor, value: int) -> torch.Tensor:
        return torch.cat([values[:-1], values.new_tensor([value])])

    for arguments, message in [
        ((with_last(slots, 5), ranks, codes), "slot_of_token: expected slots -1 to 4, got 5"),
        ((with_last(slots, -2), ranks, codes), "slot_of_token: expected slots -1 to 4, got -2"),
        ((with_last(slots * 0, 4), ranks, codes, ranks[:4]), "slot_of_token: expected routes -1 to 2, got 4"),
        ((slots, ranks, codes, with_last(ranks * 0, 9)), "slot_of_route: expected slots -1 to 4, got 9"),
        ((slots, ranks + 20, codes), "rank_of_slot: expected 0 to 24, got 36 for slot 3"),
        ((slots, ranks - 17, codes), "rank_of_slot: expected 0 to 24, got -1 for slot 3"),
        ((slots, ranks, codes + 1), "activation_of_slot: expected 0 to 3, got 4 for slot 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            apply(x, w_down, w_up, *arguments)


def test_activation_names_and_codes() -> None:
    h = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(activate(h, "identity"), h)
    torch.testing.assert_close(activate(h, "relu"), torch.tensor([0.0, 0.0, 2.0]))
    torch.testing.assert_close(activate(h, "silu"), torch.tensor([-0.268941, 0.0, 1.761594]))
    torch.testing.assert_close(activate(h, "gelu"), torch.tensor([-0.158655, 0.0, 1.954500]))
    assert [activation_code(name) for name in ACTIVATIONS] == [0, 1, 2, 3]
    for call in (activation_code, lambda name: activate(h, name)):
        with pytest.raises(ValueError, match="expected one of identity, relu, silu, gelu, got 'tanh'"):
            call("tanh")
