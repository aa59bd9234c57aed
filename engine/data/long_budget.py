"""How many tokens of long and of short documents each domain gives, and which documents these are.

Owns that arithmetic: domains keep their proportions, long documents are sampled more inside each (Fu et al.,
arXiv 2402.10171). Must not know files, tokenizers or text.

A domain with the share p of N tokens gives clip(x·p·N, p·N − what it has of short, min(p·N, what it has of long))
tokens of long documents, with one x for all domains such that these come to the long share of N; the rest of its p·N
tokens are short. Own formulation.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

MOST_REPEATS = 4
"""Times a document may be used: up to four passes over data are nearly as good as new data (Muennighoff et al.,
arXiv 2305.16264)."""
_ROUNDS = 60


@dataclass(frozen=True, slots=True)
class Supply:
    """What one domain can give, tokens, repeats included."""

    long: float
    short: float
    proportion: float
    """Of all tokens wanted, 0 to 1; all domains add up to 1."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What one domain gives, tokens."""

    long: float
    short: float


def proportions(tokens: Sequence[float], weights: Sequence[float]) -> tuple[float, ...]:
    """Natural shares of the tokens, times the weights."""
    weighted = [count * weight for count, weight in zip(tokens, weights, strict=True)]
    whole = sum(weighted) or 1.0
    return tuple(count / whole for count in weighted)


def shared(total: float, long_share: float, supplies: Sequence[Supply]) -> tuple[Budget, ...]:
    """Budgets that come to `total` and to `long_share` of it, as far as there is so much in the right domains."""
    wanted = [supply.proportion * total for supply in supplies]
    most = [min(want, supply.long) for want, supply in zip(wanted, supplies, strict=True)]
    least = [
        min(max(want - supply.short, 0.0), limit) for want, supply, limit in zip(wanted, supplies, most, strict=True)
    ]

    def at(x: float) -> list[float]:
        return [min(max(x * want, low), high) for want, low, high in zip(wanted, least, most, strict=True)]

    low, high = 0.0, 1.0
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) < long_share * total else (low, middle)
    return tuple(
        Budget(long, min(max(want - long, 0.0), supply.short))
        for long, want, supply in zip(at(high), wanted, supplies, strict=True)
    )


def chosen(tokens: Sequence[int], members: Sequence[int], budget: float, rng: random.Random) -> array[int]:
    """How often each document is used: whole documents in random order until their tokens come to `budget`.

    `tokens` of every document of the domain; `members` the ones to choose from. A document that would overshoot by
    more than it brings is left out; nothing is used more than MOST_REPEATS times.
    """
    counts = array("H", bytes(2 * len(tokens)))
    whole = sum(tokens[index] for index in members)
    if not whole:
        return counts
    passes = min(int(budget // whole), MOST_REPEATS)
    for index in members:
        counts[index] = passes
    left = budget - passes * whole
    order = list(members)
    rng.shuffle(order)
    for index in order:
        if left <= 0 or passes == MOST_REPEATS:
            break
        if tokens[index] <= 2 * left:
            counts[index] += 1
            left -= tokens[index]
    return counts
