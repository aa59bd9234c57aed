"""The context plan: which rotary embeddings of a model are scaled, by which method, to which length.

Owns the plan type; a plan and the source's config determine the new config (`engine.context.export`) and every
frequency of the extended model. Must not know files, torch, or how a method was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.context.method import Options
from engine.context.scaling import Rotary, Scaling


@dataclass(frozen=True, slots=True)
class PlannedRotary:
    """One rotary embedding of the model and what becomes of it."""

    rotary: Rotary
    scaling: Scaling
    """What the extended model applies; where nothing changes, what the model applied before (ones, or its own)."""
    changed: bool
    """False for layers left alone: sliding windows keep their positions short."""


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """A complete decision; equal plans of equal configs give equal configs."""

    method: str
    original: int
    """L: the model's window before, its present scaling included."""
    target: int
    """L': the window after, tokens."""
    rotaries: tuple[PlannedRotary, ...]
    """One, or one per layer type; layers without positions (NoPE) have none."""
    options: Options = field(default_factory=Options)
    """As applied: where a present scaling is taken further, with its own ramp and m."""
    notes: tuple[str, ...] = ()
    """What the user should know, in sentences: lints, layers left alone, what was assumed."""

    @property
    def factor(self) -> float:
        """s = L' / L."""
        return self.target / self.original

    @property
    def scaled(self) -> PlannedRotary:
        """The embedding that is changed; the first where there are several."""
        return next(planned for planned in self.rotaries if planned.changed)
