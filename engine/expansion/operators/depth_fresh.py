"""Fresh layers: drawn anew, their branches write nothing yet (Net2Deeper for residual nets).

Net2Deeper inserts a layer that computes the identity. A residual block does so as soon as its branches write nothing,
so its interior can be anything: here small random values (standard deviation 0.02), gains neutral. Nothing is lost;
but nothing is inherited either, so new layers start with less than identity blocks do. Source: Chen, Goodfellow and
Shlens, "Net2Net", ICLR 2016 (arXiv 1511.05641); the residual form is Gesmundo & Maile (arXiv 2308.06103).
"""

from __future__ import annotations

from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.operators.depth_places import after_units
from engine.expansion.operators.registry import LAYERS, LayerRequest, Operator


def layers(request: LayerRequest) -> tuple[LayerSource, ...]:
    """Fresh layers, each of the kind of the layer it follows."""
    return after_units(request, lambda base: LayerSource(base, LayerKind.FRESH))


FRESH = Operator(
    name="fresh",
    title="fresh layers",
    axes=(LAYERS,),
    exact="always",
    loses="",
    source="Chen et al. 2016, Net2Net (arXiv 1511.05641); Gesmundo & Maile 2023 (arXiv 2308.06103)",
    layers=layers,
)
