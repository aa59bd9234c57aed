"""How sure a difference between two models is that were asked the same questions: the paired bootstrap.

Owns the interval. Must not know questions, texts or verdicts.

Both models answered the same n items, so an item is drawn with both of its figures: what makes it hard for one makes it
hard for the other, and cancels. Percentile interval of Efron and Tibshirani, An Introduction to the Bootstrap (1993),
chapter 13, over pairs as in Koehn, Statistical Significance Tests for Machine Translation Evaluation (EMNLP 2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
LEVEL = 0.95
SEED = 20_261
FEWEST_PAIRS = 6
"""Of n items that all changed the same way, chance explains 2^(1-n) (sign test): below 5 % from six on. With fewer a
percentile interval is too narrow, whatever it says."""
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
    """`delta` = after - before, and the interval that holds it at LEVEL."""

    delta: float
    low: float
    high: float
    pairs: int

    @property
    def significant(self) -> bool:
        """Whether the interval leaves zero out, and there are items enough to say so."""
        return self.pairs >= FEWEST_PAIRS and (self.low > 0 or self.high < 0)


def paired_interval(before: Items, after: Items, *, seed: int = SEED, resamples: int = RESAMPLES) -> Interval:
    """The same items in the same order on both sides; equal seeds give equal intervals."""
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
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return Interval(delta, float(low), float(high), pairs)


def _deltas(columns: NDArray[np.float64], draws: np.random.Generator, count: int) -> NDArray[np.float64]:
    """`count` resamples of the difference, (count,)."""
    pairs = columns.shape[1]
    chosen = draws.integers(0, pairs, size=(count, pairs))
    sums: Any = columns[:, chosen].sum(-1)  # (4, count)
    before, after = sums[0] / np.maximum(sums[1], 1e-300), sums[2] / np.maximum(sums[3], 1e-300)
    difference: NDArray[np.float64] = after - before
    return difference
