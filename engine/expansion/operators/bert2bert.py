"""bert2BERT: FPI copies units in a circle; AKI fills the new ones from the next layer.

    fpi   new unit j is old unit j mod n, consumers divide by the number of copies. Net2Wider without chance and noise:
          exact off the stream, and on it for whole multiples; copies are twins.
    aki   the same map, but rows of new units come from the layer above: no twins, another function. The last layer, and
          embeddings, have no layer above them and copy themselves.

Source: Chen et al., "bert2BERT", ACL 2022 (arXiv 2110.07143); grouped queries grow inside their groups, as in
AquilaMoE's AKI-Pro (2024).
"""

from __future__ import annotations

from engine.expansion.axes import Dim
from engine.expansion.growth import AxisGrowth, AxisRequest
from engine.expansion.operators.copies import into_map, out_map
from engine.expansion.operators.heads import key_value_slots, query_slots
from engine.expansion.operators.net2wider import exact_on
from engine.expansion.operators.registry import ATTENTION, WIDTHS, Operator


def _grow(request: AxisRequest, name: str, source_of_copies: int) -> AxisGrowth:
    if request.dim is Dim.KEY_VALUE:
        slots = key_value_slots(request)
    elif request.dim is Dim.QUERY:
        slots = query_slots(request, fill_with_copies=True)
    else:
        slots = [unit % request.old for unit in range(request.new)]
    out = out_map(slots, source_of_copies=source_of_copies)
    whole = request.dim is Dim.HIDDEN and request.new % request.old == 0
    return AxisGrowth(
        request.dim, out, into_map(slots), out_map(slots), name, copies=request.new // request.old if whole else 1
    )


def grow_fpi(request: AxisRequest) -> AxisGrowth:
    """Function-preserving initialisation."""
    return _grow(request, "fpi", 0)


def grow_aki(request: AxisRequest) -> AxisGrowth:
    """Advanced knowledge initialisation: source 1 of a recipe is the layer above."""
    return _grow(request, "aki", 1)


FPI = Operator(
    name="fpi",
    title="bert2BERT FPI",
    axes=(*WIDTHS, *ATTENTION),
    exact="except hidden widths that are no whole multiple",
    loses="On an uneven hidden width the norms' statistics change. Copies are twins.",
    source="Chen et al. 2022, bert2BERT (arXiv 2110.07143)",
    grow=grow_fpi,
    is_exact=exact_on,
)
AKI = Operator(
    name="aki",
    title="bert2BERT AKI",
    axes=(*WIDTHS, *ATTENTION),
    exact="never",
    loses="New units compute what the next layer computes: the function changes, in exchange for no twins.",
    source="Chen et al. 2022, bert2BERT (arXiv 2110.07143)",
    grow=grow_aki,
)
