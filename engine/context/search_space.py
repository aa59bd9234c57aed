"""What a search of divisors may try: a critical pair and a rising tail; the head follows from them.

Owns the space, its constraints, its starting points, mutation and crossover. Must not know what a set of divisors is
worth, how many are tried, or any file.

    pair      0 ........ c-1 | c ................. d/2-1
    divisor   λ_c^(i/c)      | searched, s <= λ_c <= λ_c+1 <= ... <= 2s, on a grid of 0.01
              (derived head) | (tail)

Source: LongRoPE2 (arXiv 2502.20082), section 3: pairs from the critical one on have seen less than one turn in training
and are divided by at least s = L'/L; the head is the base change that meets the tail's first value. The paper searches
the critical pair too, between the pair of ten turns and the theoretical one; here it is one more gene. Pushing
neighbours along in a mutation, and moving the critical pair by one, are our own.

LongRoPE (arXiv 2402.13753) is the same with an empty head: every pair is searched, from 1 to 1.25 s, rising. Its number
of first tokens that stay unscaled is not searched: no reader of a plain folder could apply it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

GRID = 100
"""Steps per unit: divisors of the tail are whole hundredths."""
WIDEST = 2.0
"""LongRoPE2: the tail's upper bound, in multiples of s."""
WIDEST_WHOLE = 1.25
"""LongRoPE: the upper bound of every pair, in multiples of s."""
PAIR_MUTATES = 0.3
"""Chance of every tail pair in a mutation (the paper's)."""
GENE_CROSSES = 0.15
"""Chance of every tail pair to come from the second parent (0.3 x 0.5 in the authors' code)."""
CRITICAL_MOVES = 0.15
"""Chance that a mutation moves the critical pair by one."""
PUSHES = 0.5
"""Share of mutations that move a value anywhere and push its neighbours; the others stay between the neighbours."""
SEEDED_PAIRS = 4
"""So many critical pairs, spread over the candidates, get starting points."""
CURVES = ((1.0, 1.0), (1.3, 1.6), (1.0, 2.0), (1.0, 1.3), (1.6, 2.0))
"""First and last divisor of a starting tail, in multiples of s: interpolation's, the paper's typical result, as wide as
allowed, flat, steep."""


@dataclass(frozen=True, slots=True)
class Space:
    """Where the search moves."""

    pairs: int
    factor: float
    """s = L'/L."""
    candidates: tuple[int, ...]
    """Critical pairs to try, rising, below `pairs`. (0,) searches every pair."""
    least: float
    """Bounds of the tail's divisors."""
    most: float

    @property
    def lowest(self) -> int:
        """The smallest gene: `least`, rounded up to the grid."""
        return math.ceil(self.least * GRID - 1e-9)

    @property
    def highest(self) -> int:
        """The largest gene: `most`, rounded down to the grid."""
        return max(math.floor(self.most * GRID + 1e-9), self.lowest)


def tail_space(pairs: int, factor: float, candidates: tuple[int, ...]) -> Space:
    """LongRoPE2's: the tail within s and 2s; `candidates` from 1 up, see `critical_candidates`."""
    return Space(pairs, factor, candidates, factor, WIDEST * factor)


def whole_space(pairs: int, factor: float) -> Space:
    """LongRoPE's: every pair within 1 and 1.25 s."""
    return Space(pairs, factor, (0,), 1.0, WIDEST_WHOLE * factor)


@dataclass(frozen=True, slots=True)
class Individual:
    """One point of the space; whole numbers, so that equal ones are equal."""

    critical_pair: int
    tail: tuple[int, ...]
    """Hundredths, one per pair from the critical one on."""

    @property
    def divisors(self) -> tuple[float, ...]:
        """λ of every pair, derived head included."""
        first = self.tail[0] / GRID
        head = (first ** (pair / self.critical_pair) for pair in range(self.critical_pair))
        return (*head, *(gene / GRID for gene in self.tail))


def critical_candidates(ten_turns: int, theoretical: int, pairs: int) -> tuple[int, ...]:
    """Every pair from that of ten turns to the theoretical critical one, kept inside the head of `pairs` pairs."""
    last = min(max(theoretical, 1), pairs - 1)
    return tuple(range(min(max(ten_turns, 1), last), last + 1))


def problem(space: Space, individual: Individual) -> str:
    """Which constraint is broken, in words; "" where all hold."""
    tail = individual.tail
    if individual.critical_pair not in space.candidates:
        return f"critical pair {individual.critical_pair} is none of {space.candidates}"
    if len(tail) != space.pairs - individual.critical_pair:
        return f"{len(tail)} values for {space.pairs - individual.critical_pair} pairs"
    if tail[0] < space.lowest or tail[-1] > space.highest:
        return f"values from {tail[0]} to {tail[-1]} hundredths, outside {space.lowest} to {space.highest}"
    if any(left > right for left, right in pairwise(tail)):
        return "a divisor is below that of the pair before it"
    return ""


def projected(space: Space, divisors: Sequence[float], critical_pair: int) -> Individual:
    """The point of the space with `critical_pair` whose tail is nearest to `divisors`, made to rise."""
    tail: list[int] = []
    for divisor in divisors[critical_pair:]:
        gene = min(max(round(divisor * GRID), space.lowest), space.highest)
        tail.append(max(gene, tail[-1]) if tail else gene)
    return Individual(critical_pair, tuple(tail))


def starting_points(space: Space, references: Sequence[Sequence[float]] = ()) -> tuple[Individual, ...]:
    """Projections of `references` (whole divisor curves) and the `CURVES`, over a few critical pairs; no duplicates.

    The theoretical critical pair comes first, so that a small budget starts there.
    """
    found: dict[Individual, None] = {}
    spread = _spread(space.candidates)
    for pair in spread:
        found.update((projected(space, divisors, pair), None) for divisors in references)
    for first, last in CURVES:
        found.update((_curve(space, pair, first, last), None) for pair in spread)
    return tuple(found)


def _spread(candidates: tuple[int, ...]) -> list[int]:
    """The last candidate, the first, and evenly spread ones between."""
    count = min(SEEDED_PAIRS, len(candidates))
    if count == 1:
        return [candidates[-1]]
    picked = [candidates[round(n * (len(candidates) - 1) / (count - 1))] for n in range(count)]
    return [picked[-1], picked[0], *picked[1:-1]] if count > 1 else picked


def _curve(space: Space, critical_pair: int, first: float, last: float) -> Individual:
    pairs = space.pairs - critical_pair
    steps = max(pairs - 1, 1)
    tail = [space.factor * (first + (last - first) * n / steps) for n in range(pairs)]
    return projected(space, [1.0] * critical_pair + tail, critical_pair)


def mutated(space: Space, parent: Individual, rng: random.Random) -> Individual:
    """A neighbour of `parent`; constraints hold. It may equal its parent."""
    child = _critical_moved(space, parent, rng) if rng.random() < CRITICAL_MOVES else parent
    tail = list(child.tail)
    pushes = rng.random() < PUSHES
    for place in range(len(tail)):
        if rng.random() >= PAIR_MUTATES:
            continue
        if pushes:
            spread = 0.15 * (space.highest - space.lowest)
            _push(tail, place, min(max(round(rng.gauss(tail[place], spread)), space.lowest), space.highest))
        else:
            below = tail[place - 1] if place else space.lowest
            above = tail[place + 1] if place + 1 < len(tail) else space.highest
            tail[place] = rng.randint(below, above)
    return Individual(child.critical_pair, tuple(tail))


def _push(tail: list[int], place: int, value: int) -> None:
    """Set one value; those before are lowered to it, those after raised, where they are in the way."""
    tail[:place] = [min(gene, value) for gene in tail[:place]]
    tail[place:] = [value, *(max(gene, value) for gene in tail[place + 1 :])]


def _critical_moved(space: Space, parent: Individual, rng: random.Random) -> Individual:
    """The critical pair one up or down, where that is a candidate."""
    pair = parent.critical_pair + rng.choice((-1, 1))
    if pair not in space.candidates:
        return parent
    if pair > parent.critical_pair:
        return Individual(pair, parent.tail[1:])
    return Individual(pair, (rng.randint(space.lowest, parent.tail[0]), *parent.tail))


def crossed(space: Space, first: Individual, second: Individual, rng: random.Random) -> Individual:
    """The first parent with some tail values of the second, made to rise again; constraints hold."""
    tail = list(first.tail)
    shift = first.critical_pair - second.critical_pair
    for place in range(len(tail)):
        if rng.random() < GENE_CROSSES and place + shift >= 0:
            tail[place] = second.tail[place + shift]
    return Individual(first.critical_pair, tuple(_running_maximum(tail)))


def _running_maximum(tail: Sequence[int]) -> list[int]:
    risen: list[int] = []
    for gene in tail:
        risen.append(max(gene, risen[-1]) if risen else gene)
    return risen


def drawn(space: Space, rng: random.Random) -> Individual:
    """Any point of the space."""
    pair = rng.choice(space.candidates)
    return Individual(pair, tuple(sorted(rng.randint(space.lowest, space.highest) for _ in range(space.pairs - pair))))
