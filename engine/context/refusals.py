"""What a plan may not ask for, in words: targets, factors, methods that do not apply.

Owns the limits. Must not know configs.
"""

from __future__ import annotations

import math

from engine.context.faults import bad_option
from engine.context.method import Method
from engine.context.methods import METHODS
from engine.context.scaling import Rotary
from engine.errors import EngineError

LARGEST_FACTOR = 64.0
"""Beyond it nothing published works without a training of billions of tokens (LongRoPE's 2048k is 512x of 4k in stages
of 64x and less)."""
LARGEST_LENGTH = 1 << 22
"""Angles are float32: at 4M the fastest pair is rounded by up to 0.25 rad."""
LARGEST_ATTENTION_FACTOR = 4.0
LARGEST_OWN_FACTOR = 4 * LARGEST_FACTOR


def angle_rounding(length: int) -> float:
    """Radians by which float32 rounds the fastest pair's angle at the last of `length` positions: half a step."""
    return float(2.0 ** (math.floor(math.log2(max(length - 1, 1))) - 24))


def check_target(window: int, target: int) -> None:
    """Raises EngineError `context.target` or `context.factor` for a length that the window cannot be extended to."""
    if target <= window:
        raise EngineError(
            "context.target",
            f"The model reads {window:,} tokens already; {target:,} would not be a longer window.",
            next_step=f"Ask for more than {window:,} tokens (2x is {2 * window:,}).",
        )
    if target > LARGEST_LENGTH:
        raise EngineError(
            "context.target",
            f"{target:,} tokens are beyond what rotary angles in float32 can tell apart.",
            cause=f"At that position the fastest pair's angle is rounded by up to {angle_rounding(target):.2g} rad.",
            next_step=f"Ask for at most {LARGEST_LENGTH:,} tokens.",
        )
    if target > LARGEST_FACTOR * window:
        raise EngineError(
            "context.factor",
            f"{target:,} tokens are {target / window:,.0f} times the window of {window:,}; "
            f"at most {LARGEST_FACTOR:g} times is offered.",
            cause="No method holds at such a factor without training at length between.",
            next_step=f"Extend in stages of 2x to 4x with training between, or ask for at most "
            f"{round(LARGEST_FACTOR * window):,}.",
        )


def check_factor(factor: float | None) -> None:
    """Raises EngineError `context.factor` for an explicit factor that stretches nothing or beyond all bounds."""
    if factor is None or (math.isfinite(factor) and 1 < factor <= LARGEST_OWN_FACTOR):
        return
    raise EngineError(
        "context.factor",
        f"A factor of {factor:g} cannot be applied.",
        cause=f"It must be a number above 1 and up to {LARGEST_OWN_FACTOR:g}.",
        next_step="Leave it out: target / window is taken.",
    )


def check_attention_factor(factor: float | None) -> None:
    """Raises EngineError `context.option` for an m that would switch attention off or saturate it."""
    if factor is not None and not 0 < factor <= LARGEST_ATTENTION_FACTOR:
        raise bad_option("attention factor", factor, f"a number above 0 and up to {LARGEST_ATTENTION_FACTOR:g}")


def fixed_factor(method: Method, factor: float, ratio: float, target: int) -> EngineError:
    """A factor that contradicts the length, with a method whose config states both; the caller raises it."""
    return EngineError(
        "context.factor",
        f"{method.title} to {target:,} tokens has the factor {ratio:g}; {factor:g} cannot be written.",
        cause="Readers work out one of factor and max_position_embeddings from the other, and not all the same one.",
        next_step=f"Ask for {round(target / ratio * factor):,} tokens instead, or take ntk or abf, where the factor is "
        "free.",
    )


def unknown_method(name: str) -> EngineError:
    """The caller raises it."""
    return EngineError(
        "context.method",
        f"There is no scaling method '{name[:40]}'.",
        next_step="Take one of: " + ", ".join(METHODS) + ".",
    )


def already_scaled(rotary: Rotary, method: Method) -> EngineError:
    """A model that is scaled already, by a type that this method cannot take further; the caller raises it."""
    kind = rotary.present_kind
    others = [other.id for other in METHODS.values() if kind in (*other.extends, *other.stands_on)]
    next_step = (
        f"Take {' or '.join(others)}, or the publisher's model from before its scaling."
        if others
        else "Take the publisher's model from before its scaling."
    )
    cause = {
        "longrope": "Its factors were searched for its own length; another needs a new search from the base model.",
        "dynamic": "Its base follows the length at hand.",
    }.get(kind, "Two scalings do not add up: each assumes the frequencies of pretraining.")
    return EngineError(
        "context.already_scaled",
        f"The model's rotary positions are scaled already (type {kind}); {method.title} cannot start from there.",
        cause=cause,
        next_step=next_step,
    )
