"""Which process of several this is, as torchrun's environment says.

Owns reading and hiding these variables. Must not import torch: the worker asks before it does. They are hidden from
then on, so that libraries take this process for the only one (`engine.distributed`).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

_HIDDEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK")


@dataclass(frozen=True, slots=True)
class Place:
    """A process among those of its job."""

    rank: int
    world: int
    local_rank: int
    """On its machine: the number of its card there."""
    local_world: int

    @property
    def leads(self) -> bool:
        return self.rank == 0


def take_place() -> Place | None:
    """None for a worker alone. The variables are gone afterwards, but for the address where the ranks meet."""
    values = {name: os.environ.pop(name, "") for name in _HIDDEN}
    if not values["RANK"]:
        return None
    place = Place(
        int(values["RANK"]), int(values["WORLD_SIZE"]), int(values["LOCAL_RANK"]), int(values["LOCAL_WORLD_SIZE"])
    )
    if place.world == place.local_world and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name need not be one that it can resolve
    return place
