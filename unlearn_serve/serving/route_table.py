"""Which slot each route takes: the one small table that a flip of the default, or the loading of a route, writes.

Knows torch only. vLLM numbers the adapters that are resident from 0 and tells every token's number (-1: no adapter);
this table maps that number to a slot of the sites.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Route:
    """What one resident adapter of vLLM is, if it is a verified release."""

    release: str
    """SHA-256 of the release, 64 hex digits; or `plain`."""
    activation: int
    """Code of `unlearn_kernels.ACTIVATIONS`."""
    deletion_ids: frozenset[str] = frozenset()


class RouteTable:
    """Mutates `slot_of_route`, int32 [N + 1]: entry 0 is the default's slot, entry 1 + i that of adapter i.

    Adapter i has slot `first_slot + i` of its own. It takes it while it holds a release that covers the default's
    deletion ids; an ordinary LoRA, a release that does not cover them (any more) or nothing takes the default's slot.
    Example with first_slot = 2, the default in slot 1 with ids {a}, and adapters [release {a, b}, LoRA, release {b}]:
    [1, 2, 1, 1].
    """

    adapter_at: Callable[[int], Route | None]
    """Tells what vLLM holds as adapter i: a verified release, or None for anything else."""

    def __init__(self, slot_of_route: torch.Tensor, *, first_slot: int, require_coverage: bool) -> None:
        self.slot_of_route = slot_of_route
        self.first_slot = first_slot
        self.held: list[Route | None] = [None] * (len(slot_of_route) - 1)
        self._require_coverage = require_coverage
        self._default_slot = int(slot_of_route[0])
        self._default_ids: frozenset[str] = frozenset()

    def move_default(self, slot: int, deletion_ids: frozenset[str]) -> None:
        """Let the default be what `slot` holds, and every route that does not cover its ids fall back to it."""
        self._default_slot, self._default_ids = slot, deletion_ids
        self._write()

    def refresh(self, index: int) -> Route | None:
        """Look at what vLLM holds as adapter `index` now; returns it where it is a verified release."""
        route = self.adapter_at(index)
        if route is not self.held[index]:
            self.held[index] = route
            self._write()
        return route

    def covered(self, route: Route) -> bool:
        """Whether tokens of `route` are served under it, and not under the default."""
        return not self._require_coverage or self._default_ids <= route.deletion_ids

    def _write(self) -> None:
        slots = [self._default_slot]
        for index, route in enumerate(self.held):
            own = route is not None and self.covered(route)
            slots.append(self.first_slot + index if own else self._default_slot)
        self.slot_of_route.copy_(torch.tensor(slots, dtype=torch.int32))
