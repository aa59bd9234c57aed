"""Which pairs a model never saw turn in full, and how large a rotary base a length asks for.

Owns the critical pair, the ten-rotation pair, the base that puts a factor on a pair, and the lower bound on the base.
Must not know methods or configs.
"""

from __future__ import annotations

import math
from functools import lru_cache

from engine.context.scaling import Rotary

_SAMPLES = 4096
"""Distances at which the bound's sum is looked at, the largest first: most bases that fail do so there."""
_SMALLEST_BASE = 2.0
_LARGEST_BASE = 1e13


def critical_pair(rotary: Rotary, *, rotations: float = 1.0) -> int:
    """The first pair that turns less than `rotations` times within the window.

    d_tcd = ceil(d/2 · log_b(L / (2π·rotations))): LongRoPE2, arXiv 2502.20082, equation 7 without its doubling for
    cos and sin. Within 1 .. pairs - 1, so that there always is a head and a tail.
    """
    turns = rotary.length / (2 * math.pi * rotations)
    if turns <= 1:
        return 1
    pair = math.ceil(rotary.dim / 2 * math.log(turns) / math.log(rotary.theta))
    return min(max(pair, 1), rotary.pairs - 1)


def ten_rotation_pair(rotary: Rotary) -> int:
    """Where a search for the real critical pair begins; it ends at `critical_pair` (LongRoPE2, section 3.1)."""
    return critical_pair(rotary, rotations=10.0)


def base_dividing(rotary: Rotary, pair: int, divisor: float) -> float:
    """The base b' whose pair `pair` turns `divisor` times slower: b · divisor^(d / (2·pair)).

    A base change divides pair i by (b'/b)^(2i/d); solved for b'. With pair = d/2 - 1 it is NTK-aware scaling.
    """
    return float(rotary.theta * divisor ** (rotary.dim / (2 * pair)))


def base_divisors(rotary: Rotary, base: float) -> tuple[float, ...]:
    """λ_i = (b'/b)^(2i/d) of a changed base b'."""
    return tuple(float((base / rotary.theta) ** (2 * pair / rotary.dim)) for pair in range(rotary.pairs))


@lru_cache(maxsize=64)
def base_lower_bound(length: int, dim: int) -> float:
    """The smallest base that lets similar tokens attract each other more than random ones at all distances in `length`.

    The base from which Σ_i cos(m·b^(-2i/d)) >= 0 holds for m = 0 .. length (arXiv 2405.14591, theorem 1), by bisection
    of log b. Lengths above `_SAMPLES` are sampled evenly, which leaves a factor of two: with d = 128 it gives 4.6e4 for
    4k, 1.1e6 for 32k, 5.9e6 for 128k (paper: 2.7e4, 6.4e5, 7.8e6). A hint and no law: Llama 3.1's 5e5 at 128k is below.
    """
    distances = _distances(length)
    low, high = math.log(_SMALLEST_BASE), math.log(_LARGEST_BASE)
    while high - low > 0.01:
        middle = (low + high) / 2
        if _attracts(distances, math.exp(middle), dim):
            high = middle
        else:
            low = middle
    return math.exp(high)


def base_suffices(base: float, length: int, dim: int) -> bool:
    """Whether `base` is large enough for `length` by the sum of `base_lower_bound`, without searching the bound."""
    return _attracts(_distances(length), base, dim)


def _distances(length: int) -> tuple[float, ...]:
    count = min(length, _SAMPLES)
    return tuple(length * index / count for index in range(count, 0, -1))


def _attracts(distances: tuple[float, ...], base: float, dim: int) -> bool:
    frequencies = [base ** (-2 * pair / dim) for pair in range(dim // 2)]
    return all(sum([math.cos(distance * frequency) for frequency in frequencies]) >= 0 for distance in distances)
