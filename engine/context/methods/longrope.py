"""LongRoPE: one divisor per pair, found by a search, with a second set for sequences within the old window.

The carrier of every other static scheme too: with both sets equal, type "longrope" reproduces any divisors and any m.
"""

from __future__ import annotations

import math
from typing import Any

from engine.context.faults import bad_option, needs_divisors
from engine.context.method import Method, Options
from engine.context.scaling import Rotary, Scaling

LARGEST_DIVISOR = 10_000.0


def su_attention_factor(ratio: float, original: int) -> float:
    """m = sqrt(1 + ln(s) / ln(L)); 1 where nothing is stretched (arXiv 2402.13753; policy "su" of its code)."""
    return math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0


def checked_divisors(divisors: tuple[float, ...], rotary: Rotary, called: str) -> tuple[float, ...]:
    """The divisors as given. Raises EngineError `context.option` for a wrong count or a value that cannot be."""
    if len(divisors) != rotary.pairs:
        raise bad_option(called, f"{len(divisors)} values", f"{rotary.pairs}, one per rotated pair")
    for value in divisors:
        if not (math.isfinite(value) and 0 < value <= LARGEST_DIVISOR):
            raise bad_option(called, value, f"finite numbers above 0 and up to {LARGEST_DIVISOR:,.0f}")
    return tuple(float(value) for value in divisors)


def scale(rotary: Rotary, ratio: float, options: Options) -> Scaling:
    """λ as given (searched elsewhere): `long_divisors`, and `short_divisors` while all positions are below L.

    m = sqrt(1 + ln s/ln L) unless given; readers put it on short sequences too. Raises EngineError
    `context.needs_search` without divisors.
    """
    if not options.long_divisors:
        raise needs_divisors("longrope")
    long = checked_divisors(options.long_divisors, rotary, "long factors")
    short = checked_divisors(options.short_divisors, rotary, "short factors") if options.short_divisors else ()
    factor = options.attention_factor or su_attention_factor(ratio, rotary.length)
    return Scaling(long, factor, short_divisors=short)


def carrier(rotary: Rotary, ratio: float, scaling: Scaling) -> dict[str, Any]:
    """Any static scaling as type "longrope": exact in transformers, m written out."""
    short = scaling.short_divisors or scaling.divisors
    return {
        "rope_type": "longrope",
        "rope_theta": rotary.theta,
        "factor": float(ratio),
        "short_factor": [float(value) for value in short],
        "long_factor": [float(value) for value in scaling.divisors],
        "attention_factor": float(scaling.attention_factor),
    }


def settings(rotary: Rotary, ratio: float, options: Options, scaling: Scaling) -> dict[str, Any]:
    return carrier(rotary, ratio, scaling)


LONGROPE = Method(
    id="longrope",
    title="LongRoPE",
    summary="one divisor per pair from a search; a second set may serve sequences within the old window",
    source="arXiv 2402.13753",
    scale=scale,
    settings=settings,
    kind="longrope",
    needs_search=True,
    by_length=True,
)
