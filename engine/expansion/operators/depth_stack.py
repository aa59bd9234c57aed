"""Stacking: the whole net on top of itself, as often as it fits, and its top layers for what is left (G_stack).

    L -> g L + r     0 .. L-1 | 0 .. L-1 | ... | L-r .. L-1

The function is lost; in its authors' comparison it nevertheless trained fastest of all operators, from sources that
had seen few tokens. Source: Du et al., "Stacking Your Transformers", NeurIPS 2024 (arXiv 2405.15319); the remainder
from the top is bert2BERT's (Chen et al., ACL 2022).
"""

from __future__ import annotations

from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.operators.depth_places import check, old_layers
from engine.expansion.operators.registry import LAYERS, LayerRequest, Operator


def layers(request: LayerRequest) -> tuple[LayerSource, ...]:
    """The source, then copies of it."""
    check(request)
    times, rest = divmod(request.new, request.old)
    copied = [*range(request.old)] * (times - 1) + [*range(request.old - rest, request.old)]
    return (*old_layers(range(request.old)), *(LayerSource(layer, LayerKind.COPY) for layer in copied))


STACK = Operator(
    name="stack",
    title="stacking",
    axes=(LAYERS,),
    exact="never",
    loses="The function: all layers run again on the output of the last one, and the loss jumps.",
    source="Du et al. 2024, G_stack (arXiv 2405.15319); remainder as in bert2BERT (ACL 2022)",
    layers=layers,
)
