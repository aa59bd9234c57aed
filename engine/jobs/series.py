"""One curve of a run in bounded memory: neighbouring steps share a bucket, and buckets double in width when full.

Owns downsampling and the rewind that a resume needs. Must not know events or screens.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

MAX_BUCKETS = 2000


@dataclass(frozen=True, slots=True)
class Bucket:
    """Neighbouring points of a series drawn as one."""

    first_step: int
    last_step: int
    low: float
    mean: float
    high: float
    count: int


class Series:
    """Points arrive by rising step; at most `limit` buckets of `width` steps are kept, whatever the run's length."""

    __slots__ = ("_counts", "_first", "_highs", "_indices", "_last", "_lows", "_replayed_to", "_sums", "limit", "width")

    def __init__(self, limit: int = MAX_BUCKETS) -> None:
        self.limit = limit
        self.width = 1
        """Steps per bucket; a power of two."""
        self._replayed_to = -1
        self._indices: list[int] = []
        self._first: list[int] = []
        self._last: list[int] = []
        self._lows: list[float] = []
        self._highs: list[float] = []
        self._sums: list[float] = []
        self._counts: list[int] = []

    def __len__(self) -> int:
        """Number of buckets."""
        return len(self._indices)

    def add(self, step: int, value: float) -> None:
        """Take one point. Values that are not finite, and steps before the newest bucket, are left out."""
        if step <= self._replayed_to or value - value != 0.0:  # inf - inf and nan - nan are nan
            return
        index = step // self.width
        indices = self._indices
        if indices and index <= indices[-1]:
            if index < indices[-1]:
                return
            if step > self._last[-1]:
                self._last[-1] = step
            if value < self._lows[-1]:
                self._lows[-1] = value
            if value > self._highs[-1]:
                self._highs[-1] = value
            self._sums[-1] += value
            self._counts[-1] += 1
            return
        indices.append(index)
        self._first.append(step)
        self._last.append(step)
        self._lows.append(value)
        self._highs.append(value)
        self._sums.append(value)
        self._counts.append(1)
        while len(self._indices) > self.limit:
            self._double_width()

    def extend(self, steps: Sequence[int], values: Sequence[float]) -> None:
        """Take many points with rising steps; the same as adding them one by one, several times faster."""
        total = sum(values)
        if not steps or steps[0] <= self._replayed_to or total - total != 0.0:
            for step, value in zip(steps, values, strict=True):
                self.add(step, value)
            return
        begin = 0
        while begin < len(steps):
            self.add(steps[begin], values[begin])
            # The rest of that bucket in one go.
            beyond = bisect.bisect_left(steps, (steps[begin] // self.width + 1) * self.width, begin)
            rest = values[begin + 1 : beyond]
            if rest and self._last[-1] == steps[begin]:
                self._last[-1] = steps[beyond - 1]
                self._lows[-1] = min(self._lows[-1], min(rest))
                self._highs[-1] = max(self._highs[-1], max(rest))
                self._sums[-1] += sum(rest)
                self._counts[-1] += len(rest)
            begin = beyond

    def _double_width(self) -> None:
        old = (self._indices, self._first, self._last, self._lows, self._highs, self._sums, self._counts)
        self._indices, self._first, self._last = [], [], []
        self._lows, self._highs, self._sums, self._counts = [], [], [], []
        self.width *= 2
        for index, first, last, low, high, total, count in zip(*old, strict=True):
            if self._indices and self._indices[-1] == index // 2:
                self._last[-1] = last
                self._lows[-1] = min(self._lows[-1], low)
                self._highs[-1] = max(self._highs[-1], high)
                self._sums[-1] += total
                self._counts[-1] += count
            else:
                self._indices.append(index // 2)
                self._first.append(first)
                self._last.append(last)
                self._lows.append(low)
                self._highs.append(high)
                self._sums.append(total)
                self._counts.append(count)

    def rewind(self, step: int) -> None:
        """Forget the points after `step`. A bucket that reaches across keeps its points and the replayed ones are
        left out instead: an exact resume repeats them, and the curve ends up as if nothing had happened."""
        columns = (self._indices, self._first, self._last, self._lows, self._highs, self._sums, self._counts)
        while self._first and self._first[-1] > step:
            for column in columns:
                column.pop()
        self._replayed_to = self._last[-1] if self._last and self._last[-1] > step else -1

    @property
    def last_step(self) -> int | None:
        """Newest step with a value."""
        return self._last[-1] if self._last else None

    @property
    def last_value(self) -> float | None:
        """Mean of the newest bucket; the newest value itself while buckets are one step wide."""
        return self._sums[-1] / self._counts[-1] if self._counts else None

    @property
    def lowest(self) -> float | None:
        """Smallest value seen."""
        return min(self._lows, default=None)

    @property
    def highest(self) -> float | None:
        """Largest value seen."""
        return max(self._highs, default=None)

    @property
    def total(self) -> float:
        """Sum of all points."""
        return sum(self._sums)

    @property
    def points(self) -> int:
        """How many points the buckets hold."""
        return sum(self._counts)

    def buckets(self) -> tuple[Bucket, ...]:
        """The curve, oldest first."""
        return tuple(
            Bucket(first, last, low, total / count, high, count)
            for first, last, low, high, total, count in zip(
                self._first, self._last, self._lows, self._highs, self._sums, self._counts, strict=True
            )
        )
