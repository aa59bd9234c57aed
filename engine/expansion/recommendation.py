"""Which of several plans to take, and why, in one sentence.

Owns the order of arguments: the function is kept, it can be trained here, the size is right, other programs can read
it, the KV cache stays small, training is cheap. Must not know how plans were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.expansion.costs import TrainingQuestion
from engine.units import format_bytes

if TYPE_CHECKING:
    from engine.expansion.planner import PlanChoice

CLOSE = 0.05
"""Deviations up to this are as good as each other."""
MUCH_CACHE = 0.85
"""A KV cache that grows by more than this share of the growth of the parameters counts against a plan."""


def recommended(choices: Sequence[PlanChoice], question: TrainingQuestion | None) -> tuple[PlanChoice, ...]:
    """The choices, one marked, each with its reason."""
    free = question.free_bytes if question else 0.0
    best = min(choices, key=lambda choice: _rank(choice, free))
    others = [choice for choice in choices if choice is not best]
    return tuple(
        replace(choice, recommended=True, reason=_why(choice, others, free))
        if choice is best
        else replace(choice, reason=_against(choice, best, free))
        for choice in choices
    )


def _rank(choice: PlanChoice, free: float) -> tuple[object, ...]:
    likely = choice.memory.likely if choice.memory else 0.0
    return (
        not choice.exact,
        not choice.costs.fits(free),
        int(abs(choice.deviation) / CLOSE),
        not choice.portable,
        choice.plan.after.experts > choice.plan.before.experts,  # all stay in memory for what a few compute
        choice.kv_cache_factor > MUCH_CACHE * choice.parameters / choice.parameters_before,
        _ONE_SIDED.get(choice.id, 0),
        round(choice.kv_cache_factor, 2),
        likely,
    )


_ONE_SIDED = {"feed-forward": 1}
"""A width that grows alone gives attention and the stream nothing new."""


def _why(choice: PlanChoice, others: Sequence[PlanChoice], free: float) -> str:
    parts = [
        "keeps the function" if choice.exact else "is as inexact as the others",
        _size_words(choice),
        _cache_words(choice, others),
        _memory_words(choice, others, free),
    ]
    if choice.portable and any(not other.portable for other in others):
        parts.append("suits other programs")
    said = [part for part in parts if part]
    return f"{choice.title}: {', '.join(said[:-1])} and {said[-1]}." if len(said) > 1 else f"{choice.title}: {said[0]}."


def _memory_words(choice: PlanChoice, others: Sequence[PlanChoice], free: float) -> str:
    if not free or choice.memory is None:
        return ""
    if not choice.costs.fits(free):
        return f"needs {format_bytes(choice.memory.likely)} to train, which is not free here for any of the plans"
    frozen = " with the old layers frozen" if choice.costs.method == "new blocks" else ""
    alone = others and not any(other.costs.fits(free) for other in others)
    return f"{'alone ' if alone else ''}trains in the {format_bytes(free)} free here{frozen}"


def _size_words(choice: PlanChoice) -> str:
    if not choice.target_parameters:
        return ""
    share = abs(choice.deviation)
    return "meets the size" if share < 0.005 else f"is {share:.1%} from the size"


def _cache_words(choice: PlanChoice, others: Sequence[PlanChoice]) -> str:
    mine = choice.kv_cache_factor
    if mine >= 1.005:
        return f"has {mine:.2f} times the KV cache"
    worst = max(others, key=lambda other: other.kv_cache_factor, default=None)
    more = ""
    if worst is not None and worst.kv_cache_factor > 1.05:
        more = f" ({worst.title.lower()} needs {worst.kv_cache_factor:.2f} times as much)"
    return f"keeps a KV cache of {format_bytes(choice.kv_cache_bytes_per_token)} per token{more}"


def _against(choice: PlanChoice, best: PlanChoice, free: float) -> str:
    """The first argument that decided against it."""
    if best.exact and not choice.exact:
        return f"{choice.title}: its operators do not keep the function."
    if best.costs.fits(free) and not choice.costs.fits(free) and choice.memory is not None:
        return f"{choice.title}: training it needs {format_bytes(choice.memory.likely)}."
    if abs(choice.deviation) > CLOSE >= abs(best.deviation):
        return f"{choice.title}: the nearest it comes to the size is {choice.deviation:+.0%}."
    if best.portable and not choice.portable:
        return f"{choice.title}: {choice.checked.warnings[-1]}"
    if choice.plan.after.experts > best.plan.after.experts:
        return f"{choice.title}: all experts stay in memory for what {choice.plan.after.experts_per_token} compute."
    if choice.id in _ONE_SIDED:
        return f"{choice.title}: attention and the stream gain nothing."
    if choice.kv_cache_factor > best.kv_cache_factor + 0.02:
        return f"{choice.title}: its KV cache is {choice.kv_cache_factor:.2f} times the old one."
    return f"{choice.title}: as good in most respects, and dearer to train."
