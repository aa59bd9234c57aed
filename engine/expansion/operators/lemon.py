"""LEMON: as many whole copies as fit, the rest zero (RMSNorm) or mean (LayerNorm), outgoing weights split unequally.

    hidden d -> d'    floor(d'/d) copies, d' mod d coordinates zero or mean; consumers split 1 : 2 : ... among copies
    ffn               units repeated in a circle, down columns split unequally
    heads             heads repeated within their group, output columns split unequally

Exact at any ratio. The unequal split gives copies different gradients (in size; an optimizer that divides by that size
undoes most of it, so copies part slowly). Source: Wang et al., "LEMON: Lossless Model Expansion", ICLR 2024 (arXiv
2310.07999), whose statements cover LayerNorm nets; RMSNorm and grouped queries are own derivations.
"""

from __future__ import annotations

from engine.expansion.axes import Dim
from engine.expansion.growth import AxisGrowth, AxisRequest
from engine.expansion.maps import Fill, Run
from engine.expansion.operators.copies import into_map, out_map, unequal_share
from engine.expansion.operators.heads import key_value_slots, query_slots
from engine.expansion.operators.registry import ATTENTION, WIDTHS, Operator
from engine.expansion.operators.tile import NOISE, whole_copies


def grow(request: AxisRequest) -> AxisGrowth:
    """Copies with unequal shares; equal ones and paired noise under a tied head, which has no shares of its own."""
    if request.dim is Dim.HIDDEN:
        copies, rest = divmod(request.new, request.old)
        if request.traits.tied:
            out, into, along = whole_copies(request.old, copies, noise=NOISE)
        else:
            out, into, along = whole_copies(request.old, copies, share=unequal_share)
        if rest:
            written = Fill.MEAN if request.traits.centred else Fill.ZERO
            free = Run(Fill.FREE, rest, new=True)
            out, into, along = (*out, Run(written, rest, new=True)), (*into, free), (*along, free)
        return AxisGrowth(request.dim, out, into, along, "lemon", copies=copies)
    if request.dim is Dim.KEY_VALUE:
        slots = key_value_slots(request)
        return AxisGrowth(request.dim, out_map(slots), into_map(slots), out_map(slots), "lemon")
    if request.dim is Dim.QUERY:
        slots = query_slots(request, fill_with_copies=True)
    else:
        slots = [unit % request.old for unit in range(request.new)]
    return AxisGrowth(request.dim, out_map(slots), into_map(slots, unequal_share), out_map(slots), "lemon")


LEMON = Operator(
    name="lemon",
    title="LEMON copies",
    axes=(*WIDTHS, *ATTENTION),
    exact="always",
    loses="",
    source="Wang et al. 2024, LEMON (arXiv 2310.07999); RMSNorm and grouped queries derived here",
    grow=grow,
)
