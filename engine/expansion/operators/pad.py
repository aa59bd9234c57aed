"""Zero-padding: new units write nothing at first, and what they read is free. Exact at any ratio.

    hidden    new stream coordinates stay 0 (RMSNorm) or the mean (LayerNorm); gains absorb the changed statistics
    ffn       gate/up rows free, down columns 0
    heads     query rows free at the end of each group, output columns 0
    kv_heads  key and value rows free with their query heads, output columns 0

Zero on one side only: the free side gives the zeros a gradient at the first step, and the zeros, once moved, give the
free side one at the second. Source: Gesmundo & Maile, "Composable Function-preserving Expansions", arXiv 2308.06103;
grouped queries, LayerNorm's mean and the epsilon are own derivations (see `engine.expansion.scales`).
"""

from __future__ import annotations

from engine.expansion.axes import Dim
from engine.expansion.growth import AxisGrowth, AxisRequest
from engine.expansion.maps import Fill, Run
from engine.expansion.operators.copies import into_map, out_map
from engine.expansion.operators.heads import key_value_slots, query_slots
from engine.expansion.operators.registry import ATTENTION, WIDTHS, Operator


def grow(request: AxisRequest) -> AxisGrowth:
    """New units after the old ones; new heads at the end of their group."""
    if request.dim is Dim.QUERY:
        slots = query_slots(request, fill_with_copies=False)
        return AxisGrowth(request.dim, out_map(slots), into_map(slots), out_map(slots), "pad")
    if request.dim is Dim.KEY_VALUE:
        slots = key_value_slots(request)
        return AxisGrowth(request.dim, out_map(slots), into_map(slots), out_map(slots), "pad")
    old, added = Run(Fill.COPY, request.old), request.new - request.old
    free, zero = Run(Fill.FREE, added, new=True), Run(Fill.ZERO, added, new=True)
    if request.dim is Dim.HIDDEN:
        mean = Run(Fill.MEAN, added, new=True)
        written = mean if request.traits.centred else zero
        return AxisGrowth(request.dim, (old, written), (old, free), (old, free), "pad")
    return AxisGrowth(request.dim, (old, free), (old, zero), (old, free), "pad")


PAD = Operator(
    name="pad",
    title="zero-padding",
    axes=(*WIDTHS, *ATTENTION),
    exact="always",
    loses="",
    source="Gesmundo & Maile 2023 (arXiv 2308.06103); LayerNorm, grouped queries and epsilon derived here",
    grow=grow,
)
