"""What is outside a teacher's top k, at any temperature, from six numbers.

Owns the sums over the rest and their interpolation (own derivation). Must not know files or losses.

At temperature T every probability becomes p_i^b / Z with b = 1 / T, so the k kept ones are exact at any T once Z is
known, and of the rest only g(b) = log sum p_i^b over the tokens left out is needed. g is smooth and convex (its second
derivative is the variance of log p among them), g(0) is the logarithm of their number, and it is kept at six more
places: a polynomial through the seven is within hundredths of a nat between them, while a mass known at T = 1 alone
would leave everything open between one token and an even spread.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from engine.distill.knowledge import LEAST_MASS

POWERS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Where g is kept; temperatures from 4 down to 0.5."""
_LEAST = math.log(LEAST_MASS)


@torch.no_grad()
def powers_of_the_rest(log_probs: Tensor, ids: Tensor) -> Tensor:
    """g at `POWERS`, float32: log-probabilities (C, V) at T = 1 and the kept ids (C, K) -> (C, 6)."""
    rest = log_probs.scatter(-1, ids, float("-inf"))  # (C, V)
    if ids.shape[-1] == log_probs.shape[-1]:
        return torch.full((len(rest), len(POWERS)), _LEAST, device=rest.device)
    return torch.stack([(power * rest).logsumexp(-1) for power in POWERS], -1)


def at_temperature(log_probs: Tensor, rest: Tensor, others: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Kept log-probabilities (C, K) and g (C, 6) at T = 1 -> log-probabilities (C, K) and the logarithm of the missing
    mass (C,), both at `temperature`, float32. `others` is how many tokens were left out.

    Above T = 4 the polynomial runs on to the exact value of an even spread; below T = 0.5 g goes on as a straight line,
    which a convex function exceeds: the mass it belongs to is next to nothing there.
    """
    power = 1.0 / temperature
    kept = log_probs.float() * power  # (C, K)
    missing = _between(rest, others, power) if others else torch.full_like(rest[:, 0], _LEAST)  # (C,)
    total = torch.logaddexp(kept.logsumexp(-1), missing)  # (C,)
    return kept - total[:, None], (missing - total).clamp_min(_LEAST)


def _between(rest: Tensor, others: int, power: float) -> Tensor:
    if power > POWERS[-1]:
        return rest[:, -1] + (power - POWERS[-1]) * (rest[:, -1] - rest[:, -2]) / (POWERS[-1] - POWERS[-2])
    weights = _weights(power)
    return weights[0] * math.log(others) + rest @ rest.new_tensor(weights[1:])


@lru_cache(maxsize=8)
def _weights(power: float) -> tuple[float, ...]:
    """Of the values at 0 and `POWERS` in the polynomial through them, at `power` (Lagrange)."""
    nodes = (0.0, *POWERS)
    return tuple(math.prod((power - other) / (node - other) for other in nodes if other != node) for node in nodes)
