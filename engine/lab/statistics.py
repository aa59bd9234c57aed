"""Means over seeds and how sure they are: Student intervals, differences paired by seed.

Owns that arithmetic, in plain Python. Must not know arms or goals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval; of one value alone low and high are not finite."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is certain."""
        return self.known and (self.low > 0 or self.high < 0)


def student_cdf(t: float, degrees: int) -> float:
    """P(T <= t) of Student's distribution with `degrees` degrees of freedom, a whole number from 1.

    Finite sums in cos θ with θ = atan(t/√ν): A = 2/π·(θ + sin θ·Σ 2·4···(2k)/(3·5···(2k+1))·cos^(2k+1) θ) for odd ν
    (without the sum for ν = 1), A = sin θ·Σ 1·3···(2k-1)/(2·4···2k)·cos^2k θ for even ν; P = (1 + A)/2.
    Source: Abramowitz & Stegun 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range((degrees - 1) // 2 if odd else degrees // 2):
        total += term
        top = 2 * (k + 1) if odd else 2 * k + 1
        term *= top / (top + 1) * cosine * cosine
    inside = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return (1 + inside) / 2


def student_quantile(probability: float, degrees: int) -> float:
    """t with P(T <= t) = `probability`, from 0.5 to below 1, by bisection."""
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < probability:
        low, high = high, high * 2
    while high - low > 1e-10 * max(high, 1.0):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def interval(values: Sequence[float], *, comparisons: int = 1) -> Interval:
    """mean ± t·s/√n at 95 %; with several `comparisons` at 1 - 0.05/comparisons each, so that all hold together
    (Bonferroni)."""
    count, mean = len(values), fmean(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    tail = (1 - CONFIDENCE) / (2 * max(comparisons, 1))
    half = student_quantile(1 - tail, count - 1) * stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def paired(first: dict[int, float], second: dict[int, float], *, comparisons: int = 1) -> Interval | None:
    """Of first - second, seed by seed, over the seeds both have; None where they share none."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    return interval([first[seed] - second[seed] for seed in shared], comparisons=comparisons)
