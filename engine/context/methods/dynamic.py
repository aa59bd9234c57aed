"""Dynamic NTK: the base grows with the sequence at hand."""

from __future__ import annotations

from typing import Any

from engine.context.critical import base_divisors
from engine.context.method import Method, Options
from engine.context.methods.base_change import ntk_base
from engine.context.scaling import Rotary, Scaling, unscaled


def divisors_at(rotary: Rotary, factor: float, length: int) -> tuple[float, ...]:
    """λ of a sequence of `length` tokens: NTK with s replaced by f·length/L - (f - 1); ones up to L tokens.

    The rule of transformers' type "dynamic", where it comes without a paper; arXiv 2309.00071, section 3.3, describes
    the idea. With f = L'/L a sequence of L' tokens is divided as by NTK with s = f² - f + 1.
    """
    if length <= rotary.length:
        return unscaled(rotary).divisors
    return base_divisors(rotary, ntk_base(rotary, factor * length / rotary.length - (factor - 1)))


def scale(rotary: Rotary, ratio: float, options: Options) -> Scaling:
    """Divisors of a sequence as long as the target; of one within L: ones. In between see `divisors_at`. m = 1."""
    target = round(rotary.length * ratio)
    divisors = divisors_at(rotary, options.factor or ratio, target)
    return Scaling(divisors, short_divisors=unscaled(rotary).divisors)


def settings(rotary: Rotary, ratio: float, options: Options, scaling: Scaling) -> dict[str, Any]:
    return {"rope_type": "dynamic", "rope_theta": rotary.theta, "factor": float(options.factor or ratio)}


DYNAMIC = Method(
    id="dynamic",
    title="Dynamic NTK",
    summary="the original model up to its window, above it a base that grows with the sequence",
    source="arXiv 2309.00071, section 3.3",
    scale=scale,
    settings=settings,
    exported=False,
    not_exported_reason=(
        "Readers take max_position_embeddings as the window that dynamic scaling starts from: written as the target, "
        "scaling never starts; left as it was, other tools cut prompts there. While generating, keys in the cache "
        "were turned by smaller bases than later queries, and vLLM and llama.cpp do not follow the length."
    ),
    by_length=True,
    free_factor=True,
)
