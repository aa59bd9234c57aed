"""Methods that change the rotary base and nothing else: static NTK and NTK at the critical pair.

Every engine reads their configs: the type stays "default" and `rope_theta` grows.
"""

from __future__ import annotations

from typing import Any

from engine.context.critical import base_dividing, base_divisors, critical_pair
from engine.context.faults import bad_option
from engine.context.method import Method, Options
from engine.context.scaling import Rotary, Scaling


def ntk_base(rotary: Rotary, factor: float) -> float:
    """b' = b · s^(d/(d-2)): the last pair turns s times slower and the first as before (NTK-aware; arXiv 2309.00071,
    section 3.1)."""
    return base_dividing(rotary, rotary.pairs - 1, factor)


def critical_base(rotary: Rotary, ratio: float, options: Options) -> float:
    """The base with which λ at the chosen pair is s: b' = b · s^(d/(2·pair)).

    From that pair on, so from d_tcd on with the default before it, no pair of a sequence of s·L turns further than
    training saw (arXiv 2502.20082, section 3.2 and
    its ablation "NTK with the found critical dimension"). Tail pairs are divided by more than s. Raises EngineError
    `context.option` for a pair that does not exist.
    """
    return base_dividing(rotary, chosen_pair(rotary, options), options.factor or ratio)


def default_pair(rotary: Rotary) -> int:
    """d_tcd - 1, the pair before the first that never turned in full: what the authors of LongRoPE2 take where nobody
    searched (their public code's automatic value)."""
    return max(critical_pair(rotary) - 1, 1)


def chosen_pair(rotary: Rotary, options: Options) -> int:
    """The critical pair asked for, else the default. Raises EngineError `context.option`."""
    if options.critical_pair is None:
        return default_pair(rotary)
    if not 1 <= options.critical_pair < rotary.pairs:
        raise bad_option("critical pair", options.critical_pair, f"a pair between 1 and {rotary.pairs - 1}")
    return options.critical_pair


def scale_ntk(rotary: Rotary, ratio: float, options: Options) -> Scaling:
    """λ_i = s^(2i/(d-2)), m = 1. Pairs between still meet angles they never saw, so that the usable length is shorter
    than s·L; a factor of 1.5 to 2 times the ratio makes up for it."""
    return Scaling(base_divisors(rotary, ntk_base(rotary, options.factor or ratio)))


def ntk_settings(rotary: Rotary, ratio: float, options: Options, scaling: Scaling) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": ntk_base(rotary, options.factor or ratio)}


def scale_critical(rotary: Rotary, ratio: float, options: Options) -> Scaling:
    """λ_i = s^(i/pair), m = 1: the curve of a base change that reaches s at the critical pair (`critical_base`)."""
    return Scaling(base_divisors(rotary, critical_base(rotary, ratio, options)))


def critical_settings(rotary: Rotary, ratio: float, options: Options, scaling: Scaling) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": critical_base(rotary, ratio, options)}


NTK = Method(
    id="ntk",
    title="NTK-aware, static",
    summary="raises the base so that the slowest pair is divided by the factor and the fastest is left alone",
    source="arXiv 2309.00071, section 3.1",
    scale=scale_ntk,
    settings=ntk_settings,
    free_factor=True,
)
NTK_CRITICAL = Method(
    id="ntk-critical",
    title="NTK at the critical pair",
    summary="raises the base so that the pair before the first that never turned in full is divided by the factor",
    source="arXiv 2502.20082, section 3.2",
    scale=scale_critical,
    settings=critical_settings,
    free_factor=True,
)
