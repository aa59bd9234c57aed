"""ABF: a larger base, chosen for the length; also on top of a model that is scaled already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.context.critical import base_divisors, base_lower_bound
from engine.context.faults import bad_option
from engine.context.method import Method, Options
from engine.context.methods import linear, llama3
from engine.context.methods.base_change import ntk_base
from engine.context.scaling import Rotary, Scaling

_LARGEST_BASE = 1e15
FAR_UNDER = 10.0
"""Own choice: Llama 2 lies a factor of 5 under the bound of its window, Pythia and Mistral 0.1 over 100."""
_BELOW: dict[str, Callable[[Rotary, float, Options], Scaling]] = {"linear": linear.scale, "llama3": llama3.scale}
"""Scalings that it can stand on."""


def abf_base(rotary: Rotary, ratio: float, options: Options) -> float:
    """The base asked for; else the larger of the NTK base and the lower bound for the target's length.

    A model whose own base lies far under the bound for its own window is not described by it (few rotated pairs,
    sliding windows); the NTK base is taken. Raises EngineError `context.option` for a base that is not above the
    present one.
    """
    if options.theta is not None:
        if not rotary.theta < options.theta <= _LARGEST_BASE:
            raise bad_option(
                "base", options.theta, f"above the present base {rotary.theta:g} and up to {_LARGEST_BASE:g}"
            )
        return float(options.theta)
    ntk = ntk_base(rotary, options.factor or ratio)
    if rotary.theta * FAR_UNDER < base_lower_bound(rotary.length, rotary.dim):
        return ntk
    return max(ntk, _two_digits(base_lower_bound(round(rotary.length * ratio), rotary.dim)))


def scale(rotary: Rotary, ratio: float, options: Options) -> Scaling:
    """Adjusted base frequency: λ_i = (b'/b)^(2i/d), m = 1, with b' chosen by hand or by `abf_base` (arXiv 2309.16039,
    section 4.1; lower bound: arXiv 2405.14591). Meant to be trained.

    On a scaled model: times what its own scaling divides the new frequencies by.
    """
    base = abf_base(rotary, ratio, options)
    divisors = base_divisors(rotary, base)
    if rotary.present_kind == "default":
        return Scaling(divisors)
    present = dict(rotary.present_settings)
    original = int(present.get("original_max_position_embeddings", rotary.length))
    raised = replace(rotary, theta=base, length=original)
    below = _BELOW[rotary.present_kind](raised, float(present["factor"]), _own_options(present))
    return Scaling(tuple(one * other for one, other in zip(divisors, below.divisors, strict=True)))


def settings(rotary: Rotary, ratio: float, options: Options, scaling: Scaling) -> dict[str, Any]:
    """The present type with a larger `rope_theta`."""
    base = abf_base(rotary, ratio, options)
    return {"rope_type": rotary.present_kind, "rope_theta": base, **dict(rotary.present_settings)}


def _own_options(present: dict[str, Any]) -> Options:
    plain = Options()
    return Options(
        low_freq_factor=float(present.get("low_freq_factor", plain.low_freq_factor)),
        high_freq_factor=float(present.get("high_freq_factor", plain.high_freq_factor)),
    )


def _two_digits(base: float) -> float:
    """Rounded upwards to two digits: a bound found by sampling has no more."""
    unit = 10.0 ** max(len(f"{base:.0f}") - 2, 0)
    return float(-(-base // unit) * unit)


ABF = Method(
    id="abf",
    title="ABF (adjusted base frequency)",
    summary="raises the base to one large enough for the length by a computed bound, or to the one given",
    source="arXiv 2309.16039, section 4.1; arXiv 2405.14591",
    scale=scale,
    settings=settings,
    free_factor=True,
    stands_on=tuple(_BELOW),
)
