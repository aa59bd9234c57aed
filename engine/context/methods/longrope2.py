"""LongRoPE2: a searched tail from the critical pair on, and a head that follows from it."""

from __future__ import annotations

from itertools import pairwise

from engine.context.faults import bad_option, needs_divisors
from engine.context.method import Method, Options
from engine.context.methods.base_change import chosen_pair
from engine.context.methods.longrope import checked_divisors, settings, su_attention_factor
from engine.context.scaling import Rotary, Scaling


def with_derived_head(tail: tuple[float, ...], critical: int) -> tuple[float, ...]:
    """λ of all pairs from those of the pairs `critical` and up: λ_i = λ_critical^(i/critical) before it.

    The head is what a base change would give that meets the first searched value (arXiv 2502.20082, section 3.3, and
    the branch "ntk-left" of its code).
    """
    head = tuple(float(tail[0] ** (pair / critical)) for pair in range(critical))
    return head + tuple(float(value) for value in tail)


def scale(rotary: Rotary, ratio: float, options: Options) -> Scaling:
    """λ from `long_divisors`: all pairs as given, or only the tail from the critical pair on, whose head is derived.

    Static unless `short_divisors` are given. m = sqrt(1 + ln s/ln L) unless given; with short divisors of all ones it
    is 1, so that sequences within L see the original model (readers put m on them too). Raises EngineError
    `context.needs_search` without divisors, `context.option` for a wrong count or a falling tail.
    """
    if not options.long_divisors:
        raise needs_divisors("longrope2")
    critical = chosen_pair(rotary, options)
    given = tuple(options.long_divisors)
    if len(given) == rotary.pairs - critical and given[0] > 0:
        given = with_derived_head(given, critical)
    divisors = checked_divisors(given, rotary, "long factors")
    if any(later < earlier * (1 - 1e-9) for earlier, later in pairwise(divisors)):
        raise bad_option("long factors", "a list that falls somewhere", "values that never fall from pair to pair")
    short = checked_divisors(options.short_divisors, rotary, "short factors") if options.short_divisors else ()
    default = 1.0 if short and set(short) == {1.0} else su_attention_factor(ratio, rotary.length)
    return Scaling(divisors, options.attention_factor or default, short_divisors=short)


LONGROPE2 = Method(
    id="longrope2",
    title="LongRoPE2",
    summary="searches the divisors of pairs from the critical one on by how well needles are found; the rest follow",
    source="arXiv 2502.20082",
    scale=scale,
    settings=settings,
    kind="longrope",
    needs_search=True,
)
