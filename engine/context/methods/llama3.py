"""The scaling of Llama 3.1: by wavelength, with a blend between."""

from __future__ import annotations

from typing import Any

from engine.context.faults import bad_option
from engine.context.method import Method, Options
from engine.context.scaling import Rotary, Scaling


def scale(rotary: Rotary, ratio: float, options: Options) -> Scaling:
    """λ = 1 where L/w > high, λ = s where L/w < low, between 1/((1-t)/s + t) with t = (L/w - low)/(high - low); m = 1.

    w is the pair's wavelength in tokens (Meta's reference code for Llama 3.1 and transformers' type "llama3").
    """
    low, high = options.low_freq_factor, options.high_freq_factor
    if not high > low > 0:
        raise bad_option("high_freq_factor", high, f"above low_freq_factor ({low:g}), and both above 0")
    blends = [min(max((rotary.rotations(pair) - low) / (high - low), 0.0), 1.0) for pair in range(rotary.pairs)]
    return Scaling(tuple(1 / ((1 - blend) / ratio + blend) for blend in blends))


def settings(rotary: Rotary, ratio: float, options: Options, scaling: Scaling) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": rotary.theta,
        "factor": float(ratio),
        "low_freq_factor": float(options.low_freq_factor),
        "high_freq_factor": float(options.high_freq_factor),
    }


LLAMA3 = Method(
    id="llama3",
    title="Llama 3.1",
    summary="divides pairs whose wavelength exceeds the window by the factor, leaves short ones alone, blends between",
    source="Llama 3.1's reference code; arXiv 2407.21783, section 3.4.2",
    scale=scale,
    settings=settings,
    kind="llama3",
    extends=("llama3",),
)
