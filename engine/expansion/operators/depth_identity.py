"""Identity blocks: a copy of a layer whose branches write nothing yet, after every group of layers (LLaMA-Pro).

    x -> x + attention(norm(x)) + ...     with the last affine operation of each branch zero:     x -> x

Any number of layers at any place. Where a norm follows the branch (Gemma 2 and 3, OLMo 2, GLM-4) its gain is the last
operation and is the one closed: a zero projection before a norm is exact too, but norm(0) is a cliff, and the first
training step jumps off it. The interior is a copy, which gives the closed operation a gradient at once; once that has
moved, the interior gets one. Nothing is lost. Source: Wu et al., "LLaMA Pro", ACL 2024 (arXiv 2401.02415), whose blocks
are interleaved; the form for nets with post-norms is derived here.
"""

from __future__ import annotations

from engine.expansion.growth import LayerSource
from engine.expansion.operators.depth_places import after_units, silent_copy
from engine.expansion.operators.registry import LAYERS, LayerRequest, Operator


def layers(request: LayerRequest) -> tuple[LayerSource, ...]:
    """Silent copies, each after the layer it copies."""
    return after_units(request, silent_copy)


IDENTITY = Operator(
    name="identity",
    title="identity blocks",
    axes=(LAYERS,),
    exact="always",
    loses="",
    source="Wu et al. 2024, LLaMA Pro (arXiv 2401.02415); nets with post-norms derived here",
    layers=layers,
)
