"""Which weights of several adapters are best on rows of the user: a deterministic search over a score.

Owns the order of what is tried. Must not know models: a score is a function of weights, lower is better.

Four parts, in this order: what a reader wants to see anyway (nothing, each alone, all equally); points spread evenly
over the box (Halton's sequence, https://doi.org/10.1007/BF01386213, shifted by the seed); and, from the best so far,
the pattern search of Hooke and Jeeves (https://doi.org/10.1145/321062.321069): its step halves where no neighbour is
better.
Weights are multiples of 0.01: what is reported is what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from engine.errors import EngineError

Weights = tuple[float, ...]
Score = Callable[[Weights], float]

LOWEST, HIGHEST = -0.25, 1.5
"""The box in which points are spread; the pattern search may leave it up to WIDEST."""
WIDEST = 2.0
FIRST_STEP, LAST_STEP = 0.2, 0.02
SPREAD_SHARE = 0.4
"""Of the tries that are left after the fixed ones."""
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)
MOST_ADAPTERS = len(_PRIMES)


@dataclass(frozen=True, slots=True)
class Try:
    """One set of weights, measured."""

    weights: Weights
    loss: float
    what: str
    """ "base", "alone", "equal", "sum", "spread", "refined"."""


def fixed_tries(adapters: int) -> tuple[tuple[str, Weights], ...]:
    """What is always measured: nothing, each alone, the mean, the sum."""
    alone = tuple(tuple(float(i == j) for j in range(adapters)) for i in range(adapters))
    found = [("base", (0.0,) * adapters), *(("alone", weights) for weights in alone)]
    if adapters > 1:
        found += [("equal", (rounded(1 / adapters),) * adapters), ("sum", (1.0,) * adapters)]
    return tuple(found)


def search(score: Score, adapters: int, tries: int, seed: int = 17) -> Iterator[Try]:
    """Measurements as they come; at most `tries` of them, and never fewer than the fixed ones.

    The same score, number and seed give the same tries. A score that is not a number counts as worst. Raises
    EngineError `adapter.too_many`.
    """
    if adapters > MOST_ADAPTERS:
        raise EngineError(
            "adapter.too_many",
            f"{adapters} adapters are too many to search weights for.",
            cause=f"A search measures every direction; it is of use up to {MOST_ADAPTERS}.",
            next_step="Leave out those that are no better than the base alone.",
        )
    seen: dict[Weights, float] = {}

    def measured(what: str, weights: Weights) -> Try:
        loss = score(weights)
        seen[weights] = loss if loss == loss else float("inf")
        return Try(weights, loss, what)

    fixed = fixed_tries(adapters)
    for what, weights in fixed:
        yield measured(what, weights)
    spread = round((tries - len(fixed)) * SPREAD_SHARE)
    for weights in _spread(adapters, spread, seed):
        if weights not in seen:
            yield measured("spread", weights)
    for weights in _pattern(seen, adapters):
        if len(seen) >= tries:
            return
        yield measured("refined", weights)


def rounded(weight: float) -> float:
    """To the 0.01 that is shown; never -0.0."""
    return round(weight, 2) + 0.0


def best_of(tries: Sequence[Try]) -> Try:
    """The lowest; of equals the one that was measured first."""
    return min(tries, key=lambda one: one.loss if one.loss == one.loss else float("inf"))


def _spread(adapters: int, count: int, seed: int) -> Iterator[Weights]:
    draw = Random(seed)
    shifts = [draw.random() for _ in range(adapters)]
    for number in range(1, max(count, 0) + 1):
        places = [(_halton(number, _PRIMES[i]) + shifts[i]) % 1.0 for i in range(adapters)]
        yield tuple(rounded(LOWEST + place * (HIGHEST - LOWEST)) for place in places)


def _halton(number: int, base: int) -> float:
    """The radical inverse: the digits of `number` behind the point, mirrored."""
    value, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        value += digit * scale
    return value


def _pattern(seen: dict[Weights, float], adapters: int) -> Iterator[Weights]:
    """Weights to measure next; whoever iterates puts the loss into `seen` before asking for more."""
    at = min(seen, key=lambda weights: seen[weights])
    step = FIRST_STEP
    while step >= LAST_STEP:
        best = yield from _explored(at, step, seen, adapters)
        if best == at:
            step /= 2
            continue
        ahead = _inside(2 * new - old for new, old in zip(best, at, strict=True))
        at = best
        if ahead not in seen:
            yield ahead
        if seen[ahead] < seen[at]:
            at = ahead


def _explored(at: Weights, step: float, seen: dict[Weights, float], adapters: int) -> Generator[Weights, None, Weights]:
    """One step along every axis in turn, either way; returns the best point."""
    best = at
    for index in range(adapters):
        for sign in (1.0, -1.0):
            there = list(best)
            there[index] += sign * step
            weights = _inside(there)
            if weights not in seen:
                yield weights
            if seen[weights] < seen[best]:
                best = weights
                break
    return best


def _inside(weights: Iterable[float]) -> Weights:
    return tuple(rounded(min(max(weight, -WIDEST), WIDEST)) for weight in weights)
