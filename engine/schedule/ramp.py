"""Sequences per optimizer step: a batch that grows, and how many steps a number of tokens takes.

Owns this arithmetic and its inverse. Must not know text, devices or micro-batches. A step's size follows from the
sequences that were trained before it, so a resumed job has the steps that it would have had; any step is found in
logarithmic time.

    size(done) = first + floor((full - first) * done / over)   while done < over, then full

A small batch at first makes more of early gradients, which agree with each other (McCandlish et al., arXiv 1812.06162).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Level:
    """Steps of one size."""

    first_step: int
    first_sequence: int
    """Sequences trained before `first_step`."""
    size: int
    """Sequences per step."""


@dataclass(frozen=True, slots=True)
class BatchRamp:
    """The sizes of a stage's steps; steps count from 0."""

    first: int
    full: int
    over: int
    """Sequences over which the batch grows; 0 for a batch that never does."""
    _levels: tuple[Level, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_levels", tuple(_levels(self.first, self.full, self.over)))

    def sequences_of(self, step: int) -> int:
        """Sequences of one step."""
        return self._level_of(step).size

    def sequences_before(self, step: int) -> int:
        """Sequences of all steps before this one: of a stage of n steps, `sequences_before(n)`."""
        level = self._level_of(step)
        return level.first_sequence + (step - level.first_step) * level.size

    def steps_for(self, sequences: int) -> int:
        """The fewest steps that hold at least so many sequences."""
        number = bisect.bisect_right(self._levels, sequences, key=lambda level: level.first_sequence) - 1
        level = self._levels[max(number, 0)]
        return level.first_step + -(-max(sequences - level.first_sequence, 0) // level.size)

    @property
    def full_from(self) -> int:
        """The first step that has the full size."""
        return self._levels[-1].first_step

    def _level_of(self, step: int) -> Level:
        return self._levels[bisect.bisect_right(self._levels, step, key=lambda level: level.first_step) - 1]


def _levels(first: int, full: int, over: int) -> Iterator[Level]:
    """One after another, each as long as the formula gives its size."""
    step = done = 0
    while over and done < over and first < full:
        grown = (full - first) * done // over
        size = first + grown
        until = -(-(grown + 1) * over // (full - first))  # sequences from which on a step is larger
        steps = -(-(until - done) // size)
        yield Level(step, done, size)
        step, done = step + steps, done + steps * size
    yield Level(step, done, full)


def ramp_for_sequences(first: int, full: int, ratio: float, sequences: int) -> BatchRamp:
    """The ramp of a stage that trains about so many sequences. `first` 0 is a batch that never grows."""
    if not first or first >= full or not ratio:
        return BatchRamp(full, full, 0)
    return BatchRamp(first, full, max(round(ratio * sequences), 1))


def ramp_for_steps(first: int, full: int, ratio: float, steps: int) -> BatchRamp:
    """The ramp of a stage of so many steps: the smallest that takes them, found by halving (more sequences never take
    fewer steps)."""
    low, high = min(first or full, full) * steps, full * steps
    while low < high:
        middle = (low + high) // 2
        if ramp_for_sequences(first, full, ratio, middle).steps_for(middle) >= steps:
            high = middle
        else:
            low = middle + 1
    return ramp_for_sequences(first, full, ratio, low)
