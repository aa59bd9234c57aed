"""Which old head every head of the larger model is made from, under grouped-query attention.

Owns the slots. Must not know operators' shares or noise.

Query heads are stored group by group and the attention repeats every key/value head for its group, so new query heads
go to the end of each group and never between two groups:

    2 groups of 2 -> 2 groups of 3      q0 q1 | q2 q3   ->   q0 q1 . | q2 q3 .
"""

from __future__ import annotations

from engine.expansion.axes import Dim
from engine.expansion.growth import AxisRequest

REPLICATE = "replicate"
TILES = ("tile", "tile-plain", "lemon", "fpi", "aki", "net2wider")


def key_value_slots(request: AxisRequest) -> list[int]:
    """The old key/value head of every new one; -1 for a new head."""
    old, new = request.before.kv_heads, request.after.kv_heads
    operator = request.operators.get(Dim.KEY_VALUE.value, "pad")
    if operator == REPLICATE:
        return [group * old // new for group in range(new)]
    if operator in TILES:
        return [group % old for group in range(new)]
    return [group if group < old else -1 for group in range(new)]


def query_slots(request: AxisRequest, *, fill_with_copies: bool) -> list[int]:
    """The old query head of every new one; -1 for a new head. Copies stay within their group."""
    groups = key_value_slots(request)
    old_per_group = request.before.heads // request.before.kv_heads
    new_per_group = request.after.heads // request.after.kv_heads
    replicate = request.operators.get(Dim.KEY_VALUE.value) == REPLICATE
    replicas = request.after.kv_heads // request.before.kv_heads if replicate else 1
    slots = []
    for index, group in enumerate(groups):
        first = (index % replicas) * new_per_group
        for place in range(first, first + new_per_group):
            if group < 0 or (place >= old_per_group and not fill_with_copies):
                slots.append(-1)
            else:
                slots.append(group * old_per_group + place % old_per_group)
    return slots
