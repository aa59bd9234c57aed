"""Several updates of one matrix become one.

Owns the formulas. Must not know where updates come from: a source gives its rows when asked, and is asked for some at a
time, so that no more than a few megabytes of each update exist at once. d density, w weights, D updates, T what is left
of them; sums run over the adapters.

    exact, linear, svd   sum of w T, T = D
    magnitude            sum of w T, T = D where |D| is among the d largest shares of its matrix, else 0
    dare                 sum of w T, T = D / d with probability d, else 0 (arXiv 2311.03099)
    ties                 mean of w T over those whose sign is the elected one, T as for magnitude (arXiv 2306.01708)
    dare_ties            the same with T as for dare

Signs are elected on w T, so that a negative weight votes against what its adapter learnt: by the sum of the values, or
by their number, where an equal number is decided by the sum. With all weights 1 this is TIES as published; its factor
lambda is in the weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.adapters.recipe import Recipe
from engine.jobs.spec_mix import MixMethod, Signs
from engine.surgery.numbers import Array

CHUNK_BYTES = 2 << 20
"""Of a matrix at a time: what is worked on stays near the core."""
_LOW_BITS = 16
_SAMPLED_ROWS = 64
_MOST_HELD, _LEAST_HELD = 0.1, 1 << 16
"""Share of an update's magnitudes that are held to find one among them, and how many may be in any case."""


class RowSource(Protocol):
    """An update of a matrix (rows, columns)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        ...

    def rows(self, begin: int, end: int) -> Array:
        """Some of its rows, float32."""
        ...


@dataclass(frozen=True, slots=True)
class InMemory:
    """An update that is there as a whole."""

    values: Array  # (rows, columns) float32

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        return self.values.shape[0], self.values.shape[1]

    def rows(self, begin: int, end: int) -> Array:
        """A view of some rows."""
        return self.values[begin:end]


def combine(
    sources: Sequence[RowSource], weights: Sequence[float], recipe: Recipe, key: str, marks: Sequence[int] = ()
) -> Array:
    """The mixed update, float32 (rows, columns). `key` (the tensor's name), `marks` (one per source; left out: its
    place) and the recipe's seed decide what is dropped at random."""
    result = np.empty(sources[0].shape, dtype=np.float32)
    for begin, rows in combined_rows(sources, weights, recipe, key, marks):
        result[begin : begin + len(rows)] = rows
    return result


def combined_rows(
    sources: Sequence[RowSource], weights: Sequence[float], recipe: Recipe, key: str, marks: Sequence[int] = ()
) -> Iterator[tuple[int, Array]]:
    """(first row, rows) of the mixed update, in order."""
    marks = marks or range(len(sources))
    trims = [_trim_of(source, recipe, key, mark) for source, mark in zip(sources, marks, strict=True)]
    elects = recipe.method in (MixMethod.TIES, MixMethod.DARE_TIES)
    for begin, end in chunks(sources[0].shape):
        parts = [
            np.float32(weight) * trim.kept(source.rows(begin, end))
            for source, weight, trim in zip(sources, weights, trims, strict=True)
        ]
        yield begin, _agreed(parts, recipe.signs) if elects else _sum(parts)


def chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of parts that are worked on together."""
    step = max(1, CHUNK_BYTES // max(1, 4 * shape[1]))
    for begin in range(0, shape[0], step):
        yield begin, min(begin + step, shape[0])


def _sum(parts: Sequence[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _agreed(parts: Sequence[Array], signs: Signs) -> Array:
    """Elect and average: (rows, columns)."""
    total = _sum(parts)
    elected = np.sign(total)
    if signs is Signs.FREQUENCY:
        votes = _sum([np.sign(part) for part in parts])
        elected = np.where(votes != 0, np.sign(votes), elected)
    agreeing = [np.where(np.sign(part) == elected, part, np.float32(0)) for part in parts]
    count = _sum([(part != 0).astype(np.float32) for part in agreeing])
    return _sum(agreeing) / np.maximum(count, np.float32(1))


class _Trim(Protocol):
    def kept(self, rows: Array) -> Array: ...


@dataclass(frozen=True, slots=True)
class _All:
    def kept(self, rows: Array) -> Array:
        return rows


@dataclass(frozen=True, slots=True)
class _Largest:
    threshold: float

    def kept(self, rows: Array) -> Array:
        return np.where(np.abs(rows) >= np.float32(self.threshold), rows, np.float32(0))


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Rows come in order, so that what is drawn does not depend on how many come at a time."""

    draws: np.random.Generator
    density: float

    def kept(self, rows: Array) -> Array:
        survives = self.draws.random(rows.shape, dtype=np.float32) < self.density
        return np.where(survives, rows * np.float32(1 / self.density), np.float32(0))


def _trim_of(source: RowSource, recipe: Recipe, key: str, mark: int) -> _Trim:
    if recipe.is_sum or recipe.density == 1.0:
        return _All()
    if recipe.draws:
        words = [recipe.seed & 0xFFFF_FFFF, zlib.crc32(key.encode()), mark]
        return _Drawn(np.random.Generator(np.random.Philox(np.random.SeedSequence(words))), recipe.density)
    count = source.shape[0] * source.shape[1]
    return _Largest(largest_magnitude(source, max(1, int(recipe.density * count))))


def largest_magnitude(source: RowSource, count: int) -> float:
    """The `count`-th largest magnitude of an update, exactly, without holding it. Some rows say between which two
    magnitudes it lies, and one pass finds it there; where they were wrong, histograms do."""
    low, high = _guess(source, count)
    above, held_count, between = 0, 0, []
    most = max(_LEAST_HELD, int(_MOST_HELD * source.shape[0] * source.shape[1]))
    for begin, end in chunks(source.shape):
        sizes = np.abs(source.rows(begin, end))
        larger = sizes > high
        above += int(np.count_nonzero(larger))
        inside = (sizes >= low) & ~larger
        held_count += int(np.count_nonzero(inside))
        if low < high and held_count <= most:
            between.append(sizes[inside])
        else:
            between.clear()  # all the same, or too many to hold
    place = count - above
    if not 0 < place <= held_count:
        return _by_histograms(source, count)
    if low == high:
        return low
    if held_count > most:
        return _by_histograms(source, count)
    held = np.concatenate(between)
    return float(np.partition(held, held.size - place)[held.size - place])


def _guess(source: RowSource, count: int) -> tuple[float, float]:
    """Two magnitudes that most likely enclose the `count`-th largest."""
    rows, columns = source.shape
    places = np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLED_ROWS)).astype(int))
    sample = np.sort(np.abs(np.concatenate([source.rows(row, row + 1) for row in places])).reshape(-1))
    at = (1 - count / (rows * columns)) * (sample.size - 1)
    margin = max(2.0, 0.02 * sample.size)
    low, high = int(max(0, at - margin)), int(min(sample.size - 1, at + margin))
    return (0.0 if low == 0 else float(sample[low])), (np.inf if high == sample.size - 1 else float(sample[high]))


def _by_histograms(source: RowSource, count: int) -> float:
    """Magnitudes of float32 numbers are ordered as their bits are, so two histograms, of the upper and of the lower
    bits, find it."""
    upper = np.zeros(1 << (31 - _LOW_BITS), dtype=np.int64)
    for bits in _magnitude_bits(source):
        upper += np.bincount(bits >> _LOW_BITS, minlength=len(upper))
    bucket, above = _bucket(upper, count)
    lower = np.zeros(1 << _LOW_BITS, dtype=np.int64)
    for bits in _magnitude_bits(source):
        inside = bits[(bits >> _LOW_BITS) == bucket]
        lower += np.bincount(inside & ((1 << _LOW_BITS) - 1), minlength=len(lower))
    low, _ = _bucket(lower, count - above)
    return float(np.array([(bucket << _LOW_BITS) | low], dtype=np.uint32).view(np.float32)[0])


def _magnitude_bits(source: RowSource) -> Iterator[Array]:
    for begin, end in chunks(source.shape):
        rows = np.ascontiguousarray(source.rows(begin, end), dtype=np.float32)
        yield rows.reshape(-1).view(np.uint32) & np.uint32(0x7FFF_FFFF)


def _bucket(histogram: Array, count: int) -> tuple[int, int]:
    """(the bucket that holds the `count`-th from above, how many lie in those above it)."""
    from_above = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(from_above, count))
    return len(histogram) - 1 - place, int(from_above[place] - histogram[len(histogram) - 1 - place])
