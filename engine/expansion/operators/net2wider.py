"""Net2Wider: new units copy old ones drawn at random, consumers divide a unit's weight by its number of copies.

Exact where units are treated alike (FFN units, query heads within their group). On the stream a norm across it
sees every coordinate as often as it was drawn, so hidden growth is exact only for whole multiples, drawn evenly.
A little noise on the consumers' side, taken from the twin, parts the copies. Source: Chen, Goodfellow & Shlens,
"Net2Net", ICLR 2016 (arXiv 1511.05641).
"""

from __future__ import annotations

import random

from engine.expansion.axes import Dim, Dims
from engine.expansion.growth import AxisGrowth, AxisRequest
from engine.expansion.operators.copies import into_map, out_map
from engine.expansion.operators.heads import key_value_slots, query_slots
from engine.expansion.operators.registry import ATTENTION, WIDTHS, Operator

NOISE = 0.05
"""Relative to the weights; enough to part copies, small beside them."""


def grow(request: AxisRequest) -> AxisGrowth:
    """Random copies after the old units."""
    if request.dim is Dim.KEY_VALUE:
        slots = key_value_slots(request)
        return AxisGrowth(request.dim, out_map(slots), into_map(slots), out_map(slots), "net2wider")
    if request.dim is Dim.QUERY:
        slots = query_slots(request, fill_with_copies=True)
    else:
        slots = drawn_units(request.old, request.new, request.seed)
    return AxisGrowth(
        request.dim,
        out_map(slots),
        into_map(slots, noise=NOISE),
        out_map(slots),
        "net2wider",
        copies=request.new // request.old if request.dim is Dim.HIDDEN and request.new % request.old == 0 else 1,
    )


def drawn_units(old: int, new: int, seed: int) -> list[int]:
    """Old units in order, then random ones: whole rounds of all of them first, so that copies are as even as can be."""
    draw = random.Random(seed)
    slots = list(range(old))
    while len(slots) < new:
        slots.extend(draw.sample(range(old), min(old, new - len(slots))))
    return slots


def exact_on(axis: str, before: Dims, after: Dims) -> bool:
    """Anywhere but on the stream; there for whole multiples only."""
    return axis != Dim.HIDDEN.value or after.hidden % before.hidden == 0


NET2WIDER = Operator(
    name="net2wider",
    title="Net2Wider",
    axes=(*WIDTHS, *ATTENTION),
    exact="except hidden widths that are no whole multiple",
    loses="On an uneven hidden width every norm weighs repeated coordinates more: the function changes.",
    source="Chen, Goodfellow & Shlens 2016, Net2Net (arXiv 1511.05641)",
    grow=grow,
    is_exact=exact_on,
)
