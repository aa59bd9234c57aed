"""What this machine showed, as corrections of the formula: context, allocator slack, speed.

Owns the shape of those corrections. Must not know how they were measured (`engine.rehearsal`) nor where they are kept.
The formula keeps its structure: a correction replaces one of its constants, or scales one of its results.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.estimate.estimate import Origin, Range


@dataclass(frozen=True, slots=True)
class Calibration:
    """Constants of one machine and its library versions; None where nothing was measured."""

    origin: Origin
    """PROBE or MEASURED (from runs)."""
    source: str
    """Shown beside the figures: "probe of 2026-11-26 on NVIDIA H100, torch 2.13.0"."""
    context_bytes: Range | None = None
    """GPU: what a process holds beyond what its allocator reserves. CPU: Python and libraries before the model."""
    slack: Range | None = None
    """Reserved / allocated - 1 (CPU: resident beyond libraries / allocated - 1)."""
    allocated_factor: Range | None = None
    """Measured / predicted bytes of allocated memory, from runs or the probe."""
    speed_factor: Range | None = None
    """Measured / predicted tokens per second."""
