"""Where the entries of a grown axis come from: runs of old entries, zeros, free values, means.

Owns the map type and its arithmetic, in plain integers. Must not know tensors: a map is applied by `engine.surgery`.

    old axis   0 1 2 3 4 5                    hidden 6 -> 8, zero-padded, out:  copy 0..6 | zero 2
    new axis   0 1 2 3 4 5 . .                                            in:   copy 0..6 | free 2
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum


class Fill(StrEnum):
    """What a run holds."""

    COPY = "copy"
    """`count` old entries from `start` on, times `scale`, plus `noise`."""
    ZERO = "zero"
    FREE = "free"
    """Any value keeps the function; seeded random values for matrices, the neutral value for gains."""
    MEAN = "mean"
    """The mean over the whole old axis, times `scale` (LayerNorm nets)."""


@dataclass(frozen=True, slots=True)
class Run:
    """`count` consecutive new entries."""

    fill: Fill
    count: int
    start: int = 0
    """First old entry; COPY only."""
    scale: float = 1.0
    source: int = 0
    """Which of a recipe's sources the entries are taken from; 1 is the next layer in AKI."""
    noise: float = 0.0
    """Added noise, relative to the tensor's root mean square; its sign counts. Runs of equal `noise_key` draw equal
    noise, so that +n on one copy and -n on its twin cancel in the sum."""
    noise_key: int = 0
    new: bool = False
    """Whether the entries count as new parameters: a second copy does, the first does not."""


AxisMap = tuple[Run, ...]
"""Runs in the order of the new axis."""


def identity(count: int) -> AxisMap:
    """The axis as it was."""
    return (Run(Fill.COPY, count),)


def length(axis: AxisMap) -> int:
    """Entries of the new axis."""
    return sum(run.count for run in axis)


def is_identity(axis: AxisMap, old: int) -> bool:
    """Whether the map changes nothing of an axis of `old` entries."""
    return merged(axis) == identity(old)


def merged(runs: Iterable[Run]) -> AxisMap:
    """The same map with neighbouring runs joined where they continue each other."""
    result: list[Run] = []
    for run in runs:
        if run.count == 0:
            continue
        last = result[-1] if result else None
        if last is not None and _continues(last, run):
            result[-1] = replace(last, count=last.count + run.count)
        else:
            result.append(run)
    return tuple(result)


def _continues(last: Run, run: Run) -> bool:
    if run.fill is Fill.COPY and run.start != last.start + last.count:
        return False
    return replace(run, count=0, start=0) == replace(last, count=0, start=0)


def widened(axis: AxisMap, factor: int) -> AxisMap:
    """A map of heads as a map of their entries, `factor` per head."""
    return tuple(replace(run, count=run.count * factor, start=run.start * factor) for run in axis)


def scaled(axis: AxisMap, factor: float) -> AxisMap:
    """The map with every copied or averaged entry times `factor`."""
    return tuple(replace(run, scale=run.scale * factor) if run.fill in (Fill.COPY, Fill.MEAN) else run for run in axis)


def shifted(axis: AxisMap, offset: int) -> AxisMap:
    """The map of an axis that begins at `offset` within a longer stored one."""
    return tuple(replace(run, start=run.start + offset) if run.fill is Fill.COPY else run for run in axis)


def cut(axis: AxisMap, begin: int, end: int) -> AxisMap:
    """The part of the map for new entries `begin` to `end`."""
    result: list[Run] = []
    position = 0
    for run in axis:
        low, high = max(begin, position), min(end, position + run.count)
        if low < high:
            start = run.start + (low - position) if run.fill is Fill.COPY else run.start
            result.append(replace(run, count=high - low, start=start))
        position += run.count
    return tuple(result)


def new_spans(axis: AxisMap) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of new entries: all that are not the first copy of an old one."""
    spans: list[tuple[int, int]] = []
    position = 0
    for run in axis:
        if run.new or run.fill is not Fill.COPY:
            if spans and spans[-1][1] == position:
                spans[-1] = (spans[-1][0], position + run.count)
            else:
                spans.append((position, position + run.count))
        position += run.count
    return tuple(spans)


def first_copies(axis: AxisMap) -> tuple[tuple[int, int, int, float], ...]:
    """(new start, old start, count, scale) of the runs that hold the old axis: what an undo reads back."""
    result: list[tuple[int, int, int, float]] = []
    position = 0
    for run in axis:
        if run.fill is Fill.COPY and not run.new and run.source == 0:
            result.append((position, run.start, run.count, run.scale))
        position += run.count
    return tuple(result)
