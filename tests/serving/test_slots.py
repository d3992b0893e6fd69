"""The double buffer of one worker: staging touches nothing live, a flip is all sites at once, misfits are refused."""

import pytest
import torch

from unlearn_kernels import apply_unlearning_reference
from unlearn_serve.errors import SwapError, UnsupportedModel
from unlearn_serve.format import AdapterTensors
from unlearn_serve.serving.slots import EnforcedLayers, build_sites

D, BLOCKS, RANK = 16, [0, 1, 2], 8


def layers(**changes: int) -> EnforcedLayers:
    settings = {"num_blocks": 3, "hidden_size": D, "max_rank": RANK, "max_tokens": 32, **changes}
    return build_sites(BLOCKS, dtype=torch.float32, **settings)


def tensors(seed: int, *, rank: int = 4, blocks: tuple[int, ...] = (0, 1, 2), d: int = D) -> AdapterTensors:
    generator = torch.Generator().manual_seed(seed)
    return AdapterTensors(
        rank=rank,
        activation="silu",
        w_down={block: torch.randn(rank, d, generator=generator) for block in blocks},
        w_up={block: torch.randn(d, rank, generator=generator) for block in blocks},
    )


def outputs(enforced: EnforcedLayers, x: torch.Tensor) -> list[torch.Tensor]:
    return [site(x) for site in enforced.sites.values()]


def expected(release: AdapterTensors, x: torch.Tensor) -> list[torch.Tensor]:
    found = []
    for block in BLOCKS:
        if block not in release.w_down:
            found.append(x)
            continue
        routing = torch.zeros(len(x), dtype=torch.int32)
        down, up = release.w_down[block][None], release.w_up[block][None]
        rank, code = torch.tensor([release.rank]), torch.tensor([2])
        found.append(apply_unlearning_reference(x, down, up, routing, rank, code))
    return found


def assert_serves(enforced: EnforcedLayers, release: AdapterTensors | None) -> None:
    x = torch.randn(5, D)
    wanted = [x] * len(BLOCKS) if release is None else expected(release, x)
    for got, want in zip(outputs(enforced, x), wanted, strict=True):
        torch.testing.assert_close(got, want)
        if release is None:
            assert torch.equal(got, want)


def test_plain_until_the_first_flip_then_release_after_release() -> None:
    enforced = layers()
    assert enforced.live is None
    assert_serves(enforced, None)
    previous = None
    for number in range(4):
        release, name = tensors(number, rank=2 + number), str(number) * 64
        enforced.stage(name, release, ["case-1"])
        assert_serves(enforced, previous)
        enforced.flip(name)
        assert enforced.live is not None
        assert (enforced.live.release, enforced.live.rank) == (name, 2 + number)
        assert_serves(enforced, release)
        previous = release


def test_what_a_slot_held_before_leaves_no_trace() -> None:
    """A release of lower rank, or with fewer blocks, must not keep rows of the one before it."""
    enforced = layers()
    for name, release in [
        ("a" * 64, tensors(1, rank=8)),
        ("b" * 64, tensors(2, rank=8)),
        ("c" * 64, tensors(3, rank=1, blocks=(1,))),
    ]:
        enforced.stage(name, release, ["case-1"])
        enforced.flip(name)
    assert enforced.live is not None
    assert enforced.live.blocks == (1,)
    assert_serves(enforced, release)


def test_flip_wants_what_is_staged() -> None:
    enforced = layers()
    with pytest.raises(SwapError, match=r"flip: expected staged release b+, got nothing; stage it first"):
        enforced.flip("b" * 64)
    enforced.stage("a" * 64, tensors(1), ["case-1"])
    with pytest.raises(SwapError, match="got aaa"):
        enforced.flip("b" * 64)
    assert enforced.live is None


def test_restore_undoes_a_flip_and_does_nothing_without_one() -> None:
    enforced = layers()
    first = tensors(1)
    enforced.stage("a" * 64, first, ["case-1"])
    enforced.flip("a" * 64)
    enforced.stage("b" * 64, tensors(2), ["case-1"])
    enforced.restore("a" * 64)
    assert_serves(enforced, first)
    enforced.flip("b" * 64)
    enforced.restore("a" * 64)
    assert_serves(enforced, first)
    assert enforced.live is not None


def test_restore_to_the_plain_model_after_a_first_flip() -> None:
    enforced = layers()
    enforced.stage("a" * 64, tensors(1), ["case-1"])
    enforced.flip("a" * 64)
    enforced.restore(None)
    assert enforced.live is None
    assert_serves(enforced, None)


@pytest.mark.parametrize(
    ("release", "message"),
    [
        (tensors(1, rank=9), r"expected rank <= 8 \(max_rank\), got 9; restart the server with a larger --max-rank"),
        (tensors(1, blocks=(0, 3)), "expected blocks 0 to 2, got 3"),
        (tensors(1, d=24), "expected d = 16, got 24"),
    ],
)
def test_misfits_are_refused_and_change_nothing(release: AdapterTensors, message: str) -> None:
    enforced = layers()
    live = tensors(1)
    enforced.stage("a" * 64, live, ["case-1"])
    enforced.flip("a" * 64)
    with pytest.raises(SwapError, match=message):
        enforced.stage("b" * 64, release, ["case-1"])
    with pytest.raises(SwapError, match="got nothing"):
        enforced.flip("b" * 64)
    assert_serves(enforced, live)


def test_hidden_size_must_be_a_multiple_of_8() -> None:
    with pytest.raises(UnsupportedModel, match="multiple of 8, got 20"):
        layers(hidden_size=20)


def test_a_release_for_a_block_without_a_site_is_refused_on_the_worker_that_owns_it() -> None:
    """A pipeline rank owns blocks 1 and 2 here: block 0 is another rank's, and must not be an error."""
    enforced = build_sites([1, 2], num_blocks=3, hidden_size=D, max_rank=RANK, max_tokens=32, dtype=torch.float32)
    enforced.stage("a" * 64, tensors(1), ["case-1"])
    assert enforced.contents[enforced.idle_slot] is not None
