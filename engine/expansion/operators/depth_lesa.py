"""LESA: a small network learns from all layers what lies between two neighbours, and predicts the layers to insert.

    per kind of matrix    [W_1 | W_2 | ... | W_L] = U S [V_1 | ... | V_L]^T
    learn                 (V_i-1, V_i+1) -> V_i, row by row
    insert between i, i+1  U S V^T  with V predicted from (V_i, V_i+1)

The layers are computed by `engine.learned` before the surgery, at the source's widths. The function is lost, less than
with repeated layers; "lesa-silent" closes the new layers, which keeps it. In the upper half by default, as in its
authors' code. Mixtures are refused: routers are not predictable from their neighbours, which the paper leaves open.
Source: Yang et al., "LESA: Learnable LLM Layer Scaling-Up", ACL 2025 (arXiv 2502.13794).
"""

from __future__ import annotations

from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.operators.depth_places import Units, between_units, refused
from engine.expansion.operators.registry import LAYERS, LayerRequest, Operator

NAMES = ("lesa", "lesa-silent")
FEWEST_LAYERS = 3
"""A layer and both its neighbours: the least there is to learn from."""


def layers(request: LayerRequest) -> tuple[LayerSource, ...]:
    """Raises EngineError `expansion.layers` for mixtures and for nets too shallow to learn from."""
    return _between(request, silent=False)


def silent_layers(request: LayerRequest) -> tuple[LayerSource, ...]:
    """The same layers, closed."""
    return _between(request, silent=True)


def _between(request: LayerRequest, *, silent: bool) -> tuple[LayerSource, ...]:
    refuse_experts(request)
    if Units.of(request).count < FEWEST_LAYERS:
        raise refused(
            request,
            f"It learns from layers that have a neighbour of their kind on both sides, and {request.old} are too few.",
            "Use identity.",
        )
    return between_units(
        request,
        lambda base, other, share: LayerSource(base, LayerKind.MADE, other, share, silent=silent),
        default="upper",
    )


def refuse_experts(request: LayerRequest) -> None:
    """Raises EngineError `expansion.layers` for mixtures of experts."""
    if request.traits.experts != "none":
        raise refused(
            request,
            "Experts of neighbouring layers do not correspond, and no method is known that predicts a router.",
            "Use identity, which repeats a layer with its router.",
        )


LESA = Operator(
    name="lesa",
    title="learned layers",
    axes=(LAYERS,),
    exact="never",
    loses="The function: predicted layers take part at once, and the loss jumps, less than with repeated layers.",
    source="Yang et al. 2025, LESA (arXiv 2502.13794)",
    layers=layers,
)
LESA_SILENT = Operator(
    name="lesa-silent",
    title="learned layers, silent",
    axes=(LAYERS,),
    exact="always",
    loses="",
    source="Yang et al. 2025, LESA (arXiv 2502.13794), closed as in LLaMA Pro (arXiv 2401.02415)",
    layers=silent_layers,
)
