"""Position interpolation: every pair turns slower by the same factor."""

from __future__ import annotations

from typing import Any

from engine.context.method import Method, Options
from engine.context.scaling import Rotary, Scaling


def scale(rotary: Rotary, ratio: float, options: Options) -> Scaling:
    """λ_i = s for every pair, m = 1 (arXiv 2306.15595, equation 4: f(x, p·L/L'))."""
    return Scaling((ratio,) * rotary.pairs)


def settings(rotary: Rotary, ratio: float, options: Options, scaling: Scaling) -> dict[str, Any]:
    return {"rope_type": "linear", "rope_theta": rotary.theta, "factor": float(ratio)}


LINEAR = Method(
    id="linear",
    title="Linear (position interpolation)",
    summary="divides every pair's frequency by the factor; poor without training, and hurts short text",
    source="arXiv 2306.15595",
    scale=scale,
    settings=settings,
    kind="linear",
    extends=("linear",),
)
