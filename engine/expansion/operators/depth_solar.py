"""SOLAR's depth up-scaling: two copies of the net, m layers dropped where they meet.

    L -> 2 (L - m)     layers 0 .. L-m-1 of the first copy, then m .. L-1 of the second

Dropping m layers on both sides of the seam keeps the two layers that meet there from being the last and the first.
The function is lost: the middle layers run twice. Source: Kim et al., "SOLAR 10.7B", NAACL 2024 (arXiv 2312.15166).
"""

from __future__ import annotations

from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.operators.depth_places import check, old_layers, refused
from engine.expansion.operators.registry import LAYERS, LayerRequest, Operator


def layers(request: LayerRequest) -> tuple[LayerSource, ...]:
    """Raises EngineError `expansion.layers` for an odd number of layers and for more than twice as many."""
    check(request)
    half, odd = divmod(request.new, 2)
    if odd:
        raise refused(
            request,
            "Two copies with equally many layers dropped give an even number.",
            f"Ask for {request.new - 1} or {request.new + 1} layers.",
        )
    if request.new > 2 * request.old:
        raise refused(
            request,
            "Two copies have at most twice the layers.",
            "Use stack, which repeats the net as often as needed.",
        )
    dropped = request.old - half
    repeated = [LayerSource(layer, LayerKind.COPY) for layer in range(dropped, half)]
    return (*old_layers(range(half)), *repeated, *old_layers(range(half, request.old)))


SOLAR = Operator(
    name="solar",
    title="SOLAR depth up-scaling",
    axes=(LAYERS,),
    exact="never",
    loses="The function: the middle layers run twice, and the loss jumps until training has healed the seam.",
    source="Kim et al. 2024, SOLAR 10.7B (arXiv 2312.15166)",
    layers=layers,
)
