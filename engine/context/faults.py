"""Refusals that several parts of context scaling share. Owns their words; must not know methods."""

from __future__ import annotations

from engine.errors import EngineError


def bad_option(called: str, value: object, expected: str) -> EngineError:
    """An option outside its range; the caller raises it."""
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return EngineError(
        "context.option",
        f"The {called} cannot be {shown}; expected {expected}.",
        cause="With it the frequencies would not be those of a longer window.",
        next_step=f"Give {expected}, or leave it out for the default.",
    )


def needs_divisors(method: str) -> EngineError:
    """A method whose divisors come from a search, asked for without them; the caller raises it."""
    return EngineError(
        "context.needs_search",
        f"{method} needs one factor per rotated pair, and none were given.",
        cause="They come from a search on the model itself.",
        next_step="Run the search (--method longrope2), pass its file with --factors, "
        "or take ntk-critical, which needs no search.",
    )
