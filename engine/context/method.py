"""What a scaling method is: its formula, its form in a config, and what must be said about it.

Owns the type and the options of methods. Must not know any particular method (`engine.context.methods`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.context.scaling import Rotary, Scaling

NEEDS_SEARCH = "needs a search first"
"""Why a method without its divisors does not take part; each front end adds how a search is begun there."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may set; None and empty leave it to the method."""

    factor: float | None = None
    """Overrides target / original."""
    theta: float | None = None
    """ABF: the new base."""
    beta_fast: float = 32.0
    """Rotations in the window above which a pair is left alone (YaRN, by-parts)."""
    beta_slow: float = 1.0
    """Rotations below which a pair is interpolated in full."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    truncate: bool = True
    """YaRN, by-parts: the ramp's ends are rounded outwards to whole pairs."""
    attention_factor: float | None = None
    critical_pair: int | None = None
    """NTK at the critical pair, LongRoPE2: where every pair from here on is divided by at least the factor."""
    long_divisors: tuple[float, ...] = ()
    """LongRoPE, LongRoPE2: found by a search."""
    short_divisors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Method:
    """One way to make a window longer."""

    id: str
    """As the command line, specs and reports call it."""
    title: str
    summary: str
    """One line for people: what it does to which pairs."""
    source: str
    """Paper or file."""
    scale: Callable[[Rotary, float, Options], Scaling]
    """(rotary, target / original, options) -> the scaling. Raises EngineError `context.*`."""
    settings: Callable[[Rotary, float, Options, Scaling], dict[str, Any]]
    """(rotary, target / original, options, scaling) -> the `rope_parameters` that transformers 5 reads, `rope_theta`
    inside; without the lengths, which `engine.context.export` adds."""
    needs_search: bool = False
    """Its divisors come from a search (`long_divisors`)."""
    exported: bool = True
    not_exported_reason: str = ""
    """Why no folder is written with it."""
    by_length: bool = False
    """Frequencies depend on the length at hand, so a KV cache can go stale while generating."""
    kind: str = "default"
    """The `rope_type` that carries it."""
    extends: tuple[str, ...] = ()
    """Types of an already scaled model that it replaces by itself with a larger factor; every method starts from an
    unscaled one."""
    stands_on: tuple[str, ...] = ()
    """Types of an already scaled model that it leaves in place and adds to."""
    free_factor: bool = False
    """Whether a factor other than target / original can be written: the base alone carries it."""
