"""How sure a difference between two models is that were asked the same questions: paired bootstrap and sign test.

Owns the interval. Must not know questions, texts or verdicts.

Both models answered the same n items, so an item is drawn with both of its figures: what makes it hard for one makes it
hard for the other, and cancels. Percentile interval of Efron and Tibshirani, An Introduction to the Bootstrap (1993),
chapter 13, over pairs as in Koehn, Statistical Significance Tests for Machine Translation Evaluation (EMNLP 2004).
Where few items changed that interval is too narrow: 4 of 64 answers lost and none won leave zero out of it, while a
fair coin falls so in one of eight cases. Then the exact sign test over the items that changed (Dixon and Mood, The
Statistical Sign Test, JASA 1946; McNemar's exact test where answers are right or wrong) has to agree, or the interval
is drawn out to zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
LEVEL = 0.95
SEED = 20_261
FEWEST_PAIRS = 6
"""With fewer items no sign test can be below 5 %: n that all changed the same way are 2^(1-n)."""
MANY_CHANGED = 30
"""From so many changed items on the bootstrap is trusted alone: it also sees by how much each of them changed."""
_NUMBERS_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Items:
    """One model on n items. Its figure is the sum of `amounts` over the sum of `units`: right answers per question,
    bits per byte of text."""

    amounts: Sequence[float]
    units: Sequence[float]

    @property
    def figure(self) -> float:
        return float(sum(self.amounts)) / max(float(sum(self.units)), 1e-300)


@dataclass(frozen=True, slots=True)
class Interval:
    """`delta` = after - before, and the interval that holds it at LEVEL; it holds zero where the sign test does not
    rule chance out."""

    delta: float
    low: float
    high: float
    pairs: int

    @property
    def significant(self) -> bool:
        """Whether the interval leaves zero out, and there are items enough to say so."""
        return self.pairs >= FEWEST_PAIRS and (self.low > 0 or self.high < 0)


def paired_interval(
    before: Items, after: Items, *, comparisons: int = 1, seed: int = SEED, resamples: int = RESAMPLES
) -> Interval:
    """The same items in the same order on both sides; equal seeds give equal intervals. Where it is one of several
    `comparisons` that are searched for a loss, the sign test has to hold for all of them together (Bonferroni)."""
    pairs = len(before.amounts)
    assert pairs == len(after.amounts) == len(before.units) == len(after.units)
    delta = after.figure - before.figure
    if pairs == 0:
        return Interval(0.0, 0.0, 0.0, 0)
    columns = np.array([before.amounts, before.units, after.amounts, after.units], dtype=np.float64)  # (4, n)
    draws = np.random.default_rng(seed)
    each = max(1, _NUMBERS_AT_ONCE // (4 * pairs))
    found = [_deltas(columns, draws, min(each, resamples - begin)) for begin in range(0, resamples, each)]
    tail = (1 - LEVEL) / 2
    low, high = map(float, np.quantile(np.concatenate(found), [tail, 1 - tail]))
    rose, fell = _changed(before, after)
    doubted = rose + fell < MANY_CHANGED or comparisons > 1
    if doubted and sign_test(rose, fell) >= (1 - LEVEL) / comparisons:
        low, high = min(low, 0.0), max(high, 0.0)
    return Interval(delta, low, high, pairs)


def sign_test(rose: int, fell: int) -> float:
    """Two-sided probability that chance splits `rose` + `fell` changes at least as unevenly; 1.0 without changes."""
    changed = rose + fell
    splits = sum(math.comb(changed, count) for count in range(min(rose, fell) + 1))
    return min(1.0, 2 * splits * 0.5**changed)


def _changed(before: Items, after: Items) -> tuple[int, int]:
    """How many items rose and how many fell, each per its unit."""
    moves = [
        new / max(new_unit, 1e-300) - old / max(old_unit, 1e-300)
        for old, old_unit, new, new_unit in zip(before.amounts, before.units, after.amounts, after.units, strict=True)
    ]
    return sum(move > 0 for move in moves), sum(move < 0 for move in moves)


def _deltas(columns: NDArray[np.float64], draws: np.random.Generator, count: int) -> NDArray[np.float64]:
    """`count` resamples of the difference, (count,)."""
    pairs = columns.shape[1]
    chosen = draws.integers(0, pairs, size=(count, pairs))
    sums: Any = columns[:, chosen].sum(-1)  # (4, count)
    before, after = sums[0] / np.maximum(sums[1], 1e-300), sums[2] / np.maximum(sums[3], 1e-300)
    difference: NDArray[np.float64] = after - before
    return difference
