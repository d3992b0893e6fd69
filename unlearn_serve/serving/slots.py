"""The buffers behind the sites: two slots for the default, of which one is live while the next release is copied into
the other, and one slot for each route that can be resident.

Knows torch and the kernels, not vLLM. Shapes: S = 2 + N slots for N routes, R largest rank, d hidden size.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from unlearn_kernels import activation_code, apply_unlearning
from unlearn_serve.errors import SwapError, UnsupportedModel
from unlearn_serve.format.adapter_file import AdapterTensors
from unlearn_serve.format.manifest import BaseModelRef
from unlearn_serve.serving.route_table import RouteTable

PLAIN_SLOT = -1
DEFAULT_SLOTS = 2
"""Slots 0 and 1 are the default's; those of routes follow."""


@dataclass(frozen=True, kw_only=True)
class SlotContent:
    """What one slot holds."""

    release: str
    """SHA-256 of the release, 64 hex digits."""
    rank: int
    blocks: tuple[int, ...]
    deletion_ids: frozenset[str]


class Routing(nn.Module):
    """Which slot every token of the next step takes; one for all sites of a worker.

    Without routes slot_of_token says it: with slot 1 live and room for 4 tokens it is [1, 1, 1, 1]. With routes it
    holds the number of each token's route (-1: none), and slot_of_route the slots, see `RouteTable`. Either way a flip
    is one write to one buffer, so no step ever sees two defaults.
    """

    slot_of_token: torch.Tensor
    slot_of_route: torch.Tensor | None

    def __init__(self, *, max_tokens: int, routes: int = 0) -> None:
        super().__init__()
        routing = torch.full((max_tokens,), PLAIN_SLOT, dtype=torch.int32)
        self.register_buffer("slot_of_token", routing, persistent=False)
        table = torch.full((routes + 1,), PLAIN_SLOT, dtype=torch.int32) if routes else None
        self.register_buffer("slot_of_route", table, persistent=False)


class EnforcedSite(nn.Module):
    """The output of one block's feed-forward network: y = x + W_up[slot] act(W_down[slot] x), slot by routing."""

    w_down: torch.Tensor
    w_up: torch.Tensor
    rank_of_slot: torch.Tensor
    activation_of_slot: torch.Tensor

    def __init__(self, routing: Routing, *, hidden_size: int, max_rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.routing = routing
        slots = DEFAULT_SLOTS + (0 if routing.slot_of_route is None else len(routing.slot_of_route) - 1)
        codes = torch.zeros(slots, dtype=torch.int32)
        for name, buffer in (
            ("w_down", torch.zeros(slots, max_rank, hidden_size, dtype=dtype)),
            ("w_up", torch.zeros(slots, hidden_size, max_rank, dtype=dtype)),
            ("rank_of_slot", codes),
            ("activation_of_slot", codes.clone()),
        ):
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return y for x [..., d]; a new tensor."""
        y = apply_unlearning(
            x.reshape(-1, x.shape[-1]),
            self.w_down,
            self.w_up,
            self.routing.slot_of_token,
            self.rank_of_slot,
            self.activation_of_slot,
            self.routing.slot_of_route,
        )
        return y.view(x.shape)

    def write(self, slot: int, w_down: torch.Tensor | None, w_up: torch.Tensor | None, activation: int) -> None:
        """Fill `slot` with W_down [r, d] and W_up [d, r], or with rank 0 where the release has no layer here."""
        rank = 0 if w_down is None else w_down.shape[0]
        self.rank_of_slot[slot] = rank
        self.activation_of_slot[slot] = activation
        if w_down is not None and w_up is not None:
            self.w_down[slot, :rank].copy_(w_down)
            self.w_up[slot, :, :rank].copy_(w_up)


class EnforcedLayers(nn.Module):
    """All sites of one worker, which release each of the default's two slots holds, and the table of routes."""

    def __init__(
        self,
        sites: dict[int, EnforcedSite],
        routing: Routing,
        routes: RouteTable | None,
        *,
        num_blocks: int,
        hidden_size: int,
        max_rank: int,
    ) -> None:
        super().__init__()
        # Plain attributes: the sites are children of the feed-forward modules already.
        object.__setattr__(self, "sites", sites)
        object.__setattr__(self, "routing", routing)
        self.routes = routes
        object.__setattr__(self, "hosts", {})
        self.num_blocks = num_blocks
        self.hidden_size = hidden_size
        self.max_rank = max_rank
        self.live_slot = PLAIN_SLOT
        self.contents: list[SlotContent | None] = [None] * DEFAULT_SLOTS

    sites: dict[int, EnforcedSite]
    routing: Routing
    hosts: dict[int, nn.Module]
    """The feed-forward modules that end in the sites."""
    base_model: BaseModelRef
    """Fingerprint of the base model under the sites; a release for another one is refused."""

    @property
    def live(self) -> SlotContent | None:
        """The release that every token is served under; None for the plain model."""
        return None if self.live_slot == PLAIN_SLOT else self.contents[self.live_slot]

    @property
    def idle_slot(self) -> int:
        """The slot that no token takes."""
        return 1 if self.live_slot == 0 else 0

    def stage(self, release: str, tensors: AdapterTensors, deletion_ids: Iterable[str]) -> None:
        """Copy a verified release into the idle slot; what is live stays live. Mutates the idle slot only.

        Raises:
            SwapError: the release does not fit this model or its buffers; the idle slot is then empty.
        """
        self.require_fit(release, tensors)
        slot = self.idle_slot
        self.contents[slot] = None
        code = activation_code(tensors.activation)
        for block, site in self.sites.items():
            site.write(slot, tensors.w_down.get(block), tensors.w_up.get(block), code)
        self.contents[slot] = SlotContent(
            release=release,
            rank=tensors.rank,
            blocks=tuple(sorted(tensors.w_down)),
            deletion_ids=frozenset(deletion_ids),
        )

    def flip(self, release: str) -> None:
        """Make the staged `release` the live one, for all tokens of all later steps.

        Raises:
            SwapError: the idle slot holds something else; nothing has changed.
        """
        staged = self.contents[self.idle_slot]
        if staged is None or staged.release != release:
            got = "nothing" if staged is None else staged.release
            raise SwapError(f"flip: expected staged release {release}, got {got}; stage it first")
        self._route_to(self.idle_slot)

    def restore(self, release: str | None) -> None:
        """Undo a flip: make `release` (None: the plain model) live again; does nothing where it is live already.

        Raises:
            SwapError: neither slot holds it.
        """
        if (self.live.release if self.live else None) == release:
            return
        if release is None:
            self._route_to(PLAIN_SLOT)
        else:
            self.flip(release)

    def _route_to(self, slot: int) -> None:
        content = None if slot == PLAIN_SLOT else self.contents[slot]
        if self.routes is None:
            self.routing.slot_of_token.fill_(slot)
        else:
            self.routes.move_default(slot, content.deletion_ids if content else frozenset())
        self.live_slot = slot

    def require_fit(self, release: str, tensors: AdapterTensors) -> None:
        """Refuse a release that does not fit this model or its buffers.

        Raises:
            SwapError: too large a rank, a block that the model has not, another d.
        """
        if tensors.rank > self.max_rank:
            raise SwapError(
                f"release {release}: expected rank <= {self.max_rank} (max_rank), got {tensors.rank}; "
                "restart the server with a larger --max-rank or fuse with regmean"
            )
        for block, w_down in tensors.w_down.items():
            if not 0 <= block < self.num_blocks:
                raise SwapError(f"release {release}: expected blocks 0 to {self.num_blocks - 1}, got {block}")
            if w_down.shape[1] != self.hidden_size:
                raise SwapError(f"release {release}: expected d = {self.hidden_size}, got {w_down.shape[1]}")


def build_sites(
    ffn_blocks: list[int],
    *,
    num_blocks: int,
    hidden_size: int,
    max_rank: int,
    max_tokens: int,
    dtype: torch.dtype,
    routes: int = 0,
    require_coverage: bool = True,
    site_class: type[EnforcedSite] = EnforcedSite,
) -> EnforcedLayers:
    """Allocate the buffers of one worker on the current default device; the plain model is live until a flip.

    Args:
        ffn_blocks: blocks of this worker.
        num_blocks: blocks of the whole model.
        hidden_size: d.
        max_rank: R.
        max_tokens: most tokens of one step.
        dtype: of the weights, the model's.
        routes: N, routes that can be resident beside the default.
        require_coverage: whether a route must cover the default's deletion ids.
        site_class: what stands behind each feed-forward network.

    Raises:
        UnsupportedModel: d is not a multiple of 8.
    """
    if hidden_size % 8:
        raise UnsupportedModel(f"expected a hidden size that is a multiple of 8, got {hidden_size}")
    routing = Routing(max_tokens=max_tokens, routes=routes)
    table = None
    if routing.slot_of_route is not None:
        table = RouteTable(routing.slot_of_route, first_slot=DEFAULT_SLOTS, require_coverage=require_coverage)
    sites = {
        block: site_class(routing, hidden_size=hidden_size, max_rank=max_rank, dtype=dtype) for block in ffn_blocks
    }
    return EnforcedLayers(sites, routing, table, num_blocks=num_blocks, hidden_size=hidden_size, max_rank=max_rank)
