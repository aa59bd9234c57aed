"""What is outside a teacher's top k, at any temperature, from twelve numbers.

Owns the sums over the rest and their interpolation (own derivation). Must not know files or losses.

At temperature T every probability becomes p_i^b / Z with b = 1 / T. For the k kept ones that is a product, and of the
rest only g(b) = log sum p_i^b over the tokens left out is needed. g is smooth and convex (its second derivative is the
variance of log p among them) and g(0) is the logarithm of their number; it is kept at twelve more places, while a mass
known at T = 1 alone would leave everything open between one token and an even spread.

How fast g can turn is bounded: where n tokens give way to m others whose log p is d lower, b d = log(m / n), at most
log V, so the turn is no narrower than a share of b. The places are therefore close where b is small. Between two of
them a polynomial of degree 5 in log(b + 1/50) runs through the nearest six; it is held below the chord, which a convex
function never exceeds, and above both neighbours' chords, prolonged, which it never falls below. Measured on V =
150,000, k = 64 and 0.5 <= T <= 16 (two and three groups of tokens 8 to 1000 apart, normal and power laws, one likely
token): the logarithm of the missing mass is within 0.02 of the exact one. The kept ones are stored as float16, which
rounds a log-probability l by up to |l| / 2048, 0.008 at -16 to -32.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import lru_cache

import torch
from torch import Tensor

from engine.distill.knowledge import LEAST_MASS

POWERS = (1 / 16, 1 / 8, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
"""Where g is kept; temperatures from 16 down to 0.5."""
_NODES = (0.0, *POWERS)
_POINTS = 6
_SHIFT = 0.02
_LEAST = math.log(LEAST_MASS)


@torch.no_grad()
def powers_of_the_rest(log_probs: Tensor, ids: Tensor) -> Tensor:
    """g at `POWERS`, float32: log-probabilities (C, V) at T = 1 and the kept ids (C, K) -> (C, 12)."""
    rest = log_probs.scatter(-1, ids, float("-inf"))  # (C, V)
    if ids.shape[-1] == log_probs.shape[-1]:
        return torch.full((len(rest), len(POWERS)), _LEAST, device=rest.device)
    return torch.stack([(power * rest).logsumexp(-1) for power in POWERS], -1)


def at_temperature(log_probs: Tensor, rest: Tensor, others: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Kept log-probabilities (C, K) and g (C, 12) at T = 1 -> log-probabilities (C, K) and the logarithm of the missing
    mass (C,), both at `temperature`, float32. `others` is how many tokens were left out.

    Above T = 16 the polynomial runs on to the exact value of an even spread; below T = 0.5 g goes on as a straight
    line, which a convex function exceeds: the mass it belongs to is next to nothing there.
    """
    power = 1.0 / temperature
    kept = log_probs.float() * power  # (C, K)
    missing = _between(rest, others, power) if others else torch.full_like(rest[:, 0], _LEAST)  # (C,)
    total = torch.logaddexp(kept.logsumexp(-1), missing)  # (C,)
    return kept - total[:, None], (missing - total).clamp_min(_LEAST)


def _between(rest: Tensor, others: int, power: float) -> Tensor:
    """g at `power`, (C, 12) -> (C,)."""
    if power > POWERS[-1]:
        slope = (rest[:, -1] - rest[:, -2]) / (POWERS[-1] - POWERS[-2])
        return rest[:, -1] + (power - POWERS[-1]) * slope
    known = torch.cat([torch.full_like(rest[:, :1], math.log(others)), rest], -1)  # (C, 13)
    at = min(bisect_right(_NODES, power), len(POWERS)) - 1  # and the next node
    first, weights = _weights(at, power)
    found = known[:, first : first + _POINTS] @ known.new_tensor(weights)
    sides = [(low, low + 1) for low in (at - 1, at + 1) if 0 <= low < len(POWERS)]
    least = torch.stack([_chord(known, *side, power) for side in sides]).amax(0)
    return torch.minimum(torch.maximum(found, least), _chord(known, at, at + 1, power))


def _chord(known: Tensor, low: int, high: int, power: float) -> Tensor:
    """The straight line through two of the nodes."""
    share = (power - _NODES[low]) / (_NODES[high] - _NODES[low])
    return known[:, low] + share * (known[:, high] - known[:, low])


@lru_cache(maxsize=8)
def _weights(at: int, power: float) -> tuple[int, tuple[float, ...]]:
    """The first of the six nodes around, and the weight of each in the polynomial through them (Lagrange)."""
    first = min(max(at - _POINTS // 2 + 1, 0), len(_NODES) - _POINTS)
    here = math.log(power + _SHIFT)
    nodes = [math.log(node + _SHIFT) for node in _NODES[first : first + _POINTS]]
    return first, tuple(math.prod((here - b) / (a - b) for b in nodes if b != a) for a in nodes)
