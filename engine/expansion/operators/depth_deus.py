"""Aligned averages (OpT-DeUS): the mean of two neighbours after their neurons have been matched, then silenced.

    permute the feed-forward units and the heads of layer i+1 to fit layer i (optimal transport, Sinkhorn),
    W = (W_i + permuted W_i+1) / 2, branches closed

A permuted layer computes what it computed, so the mean is one of two layers that speak the same order of neurons. In
the upper half by default, as its authors do: new layers train fast there, because back-propagation ends early. Closed
branches keep the function; the layer is computed by `engine.learned` before the surgery. Differs from its source in
that plans are rounded to permutations and heads move as a whole, within what grouped queries and rotary positions
allow. Source: Cao et al., "OpT-DeUS", 2025 (arXiv 2508.08011).
"""

from __future__ import annotations

from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.operators.depth_lesa import refuse_experts
from engine.expansion.operators.depth_places import between_units
from engine.expansion.operators.registry import LAYERS, LayerRequest, Operator

NAME = "deus"


def layers(request: LayerRequest) -> tuple[LayerSource, ...]:
    """Raises EngineError `expansion.layers` for mixtures, and where no layer has a next one of its kind."""
    refuse_experts(request)
    return between_units(
        request,
        lambda base, other, share: LayerSource(base, LayerKind.MADE, other, share, silent=True),
        default="upper",
    )


DEUS = Operator(
    name=NAME,
    title="aligned averages",
    axes=(LAYERS,),
    exact="always",
    loses="",
    source="Cao et al. 2025, OpT-DeUS (arXiv 2508.08011)",
    layers=layers,
)
