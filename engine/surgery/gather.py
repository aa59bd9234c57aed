"""Columns cut into many short runs, taken all at once.

Owns the index lists. Must not know recipes. Operators that copy single units (Net2Net, LEMON's circular copies) cut an
axis into thousands of runs; one gather for all of them costs what a few cells would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.expansion.maps import AxisMap, Fill, Run
from engine.surgery.numbers import Array
from engine.surgery.planes import placed

MANY_RUNS = 24
"""Fewer are faster one by one: slices of memory instead of index lists."""


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """Copied columns without noise, and the runs that remain."""

    new: Array
    old: Array
    scale: Array
    """float64."""
    rest: tuple[tuple[int, Run], ...]

    @property
    def moves(self) -> bool:
        """Whether nothing is scaled."""
        return bool((self.scale == 1.0).all())


def gather_of(axis: AxisMap) -> Gather | None:
    """The gather of an axis; None when it has too few runs to be worth one."""
    runs = placed(axis)
    copied = [(first, run) for first, run in runs if run.fill is Fill.COPY and not run.noise and not run.source]
    if len(copied) < MANY_RUNS:
        return None
    new = np.concatenate([np.arange(first, first + run.count) for first, run in copied])
    old = np.concatenate([np.arange(run.start, run.start + run.count) for _, run in copied])
    scale = np.concatenate([np.full(run.count, run.scale) for _, run in copied])
    taken = {first for first, _ in copied}
    return Gather(new, old, scale, tuple(item for item in runs if item[0] not in taken))
