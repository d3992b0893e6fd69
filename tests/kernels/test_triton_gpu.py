"""The public op on a GPU, where there is one: in a CUDA graph, and under torch.compile."""

import pytest
import torch

from unlearn_kernels import apply_unlearning, apply_unlearning_, apply_unlearning_reference

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def arguments(slot: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    x, w_down, w_up = torch.randn(8, 64), torch.randn(2, 16, 64) / 8, torch.randn(2, 64, 16) / 4
    slots = torch.full((8,), slot, dtype=torch.int32)
    ranks, codes = torch.tensor([16, 8], dtype=torch.int32), torch.tensor([2, 3], dtype=torch.int32)
    return [x, w_down, w_up, slots, ranks, codes]


@pytest.mark.parametrize("op", ["apply_unlearning", "apply_unlearning_"])
def test_cuda_has_a_kernel_of_its_own(op: str) -> None:
    """Without one, CUDA would fall to the plain path, which reads routing on the host and breaks graphs."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"unlearn_kernels::{op}", "CUDA")


@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_graph_reads_routing_when_it_is_replayed(compiled: bool) -> None:
    """Captured routing would keep serving the release that was live at capture."""
    host = arguments(-1)
    on_gpu = [tensor.cuda() for tensor in host]

    def block(*inputs: torch.Tensor) -> torch.Tensor:
        return apply_unlearning(*inputs) + 0

    call = torch.compile(block, fullgraph=True) if compiled else block
    with torch.cuda.stream(torch.cuda.Stream()):
        call(*on_gpu)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(*on_gpu)
    for slot in (1, -1, 0):
        on_gpu[3].fill_(slot)
        graph.replay()
        expected = apply_unlearning_reference(*arguments(slot))
        torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-4)


@needs_gpu
def test_in_place_gives_the_same() -> None:
    on_gpu = [tensor.cuda() for tensor in arguments(0)]
    expected = apply_unlearning(*on_gpu)
    assert apply_unlearning_(*on_gpu) is on_gpu[0]
    torch.testing.assert_close(on_gpu[0], expected, rtol=1e-5, atol=1e-5)
