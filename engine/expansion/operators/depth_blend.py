"""Blends: a new layer between two is their weighted mean, entry by entry.

    W = (1 - a) W_i + a W_i+1        a = 1/2 for one layer in a gap, 1/3 and 2/3 for two ...

The function is lost: neurons and heads of neighbours do not correspond, so a mean of them resembles neither (see
`depth_deus` for means of neurons that do). "blend-silent" closes the new layer's branches, which makes it exact: an
identity block with a blended interior. Source: linear interpolation of neighbours, common practice (among others the
`depth` initialiser of llm-grow); the silent form follows LLaMA Pro (arXiv 2401.02415).
"""

from __future__ import annotations

from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.operators.depth_places import between_units
from engine.expansion.operators.registry import LAYERS, LayerRequest, Operator


def layers(request: LayerRequest) -> tuple[LayerSource, ...]:
    """Raises EngineError `expansion.layers` where no layer has a next one of its kind."""
    return between_units(request, lambda base, other, share: LayerSource(base, LayerKind.BLEND, other, share))


def silent_layers(request: LayerRequest) -> tuple[LayerSource, ...]:
    """The same layers, closed."""
    return between_units(
        request, lambda base, other, share: LayerSource(base, LayerKind.BLEND, other, share, silent=True)
    )


BLEND = Operator(
    name="blend",
    title="blended neighbours",
    axes=(LAYERS,),
    exact="never",
    loses="The function: neurons of neighbouring layers do not correspond, and their mean resembles neither.",
    source="linear interpolation of neighbours",
    layers=layers,
)
BLEND_SILENT = Operator(
    name="blend-silent",
    title="blended neighbours, silent",
    axes=(LAYERS,),
    exact="always",
    loses="",
    source="linear interpolation of neighbours, closed as in LLaMA Pro (arXiv 2401.02415)",
    layers=silent_layers,
)
