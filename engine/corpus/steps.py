"""Which tokens of which domain every optimizer step is made of: a plan that follows from weights and sizes alone.

Owns the mix over steps and the position in every domain's stream. Must not know text, shards or torch. Any step can be
asked for at once, so a run that is resumed at step n takes what it would have taken.

    sequence   0    1    2    3    4    5  ...      of the stage, counted over all its steps
    domain    web  web code  web  web code          web 0.7, code 0.3
    tokens     0    T    0   2T   3T    T           each domain's stream is cut into sequences of T tokens, in order
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from types import MappingProxyType

from engine.errors import EngineError

_WEIGHT_UNITS = 1 << 40
"""Weights become whole numbers, so that counting is exact however many sequences there are."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far every domain's endless stream has been read."""

    tokens: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Taken so far, over all epochs and stages; 0 for a domain that is not named."""

    def of(self, domain: str) -> int:
        """Tokens taken from `domain`."""
        return self.tokens.get(domain, 0)


@dataclass(frozen=True, slots=True)
class Slice:
    """One sequence of a step: a contiguous cut of a domain's stream."""

    domain: str
    first_token: int
    tokens: int


class StreamPlan:
    """The steps of one stage, from 0; a later stage begins at the position that this one ends at. Threads may share
    it: a step is read ahead while another one is computed."""

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        sequence_tokens: int,
        sequences_of_step: Callable[[int], int],
        start: Position | None = None,
    ) -> None:
        """`weights` belong to `names` and need not sum to 1. Raises EngineError `corpus.mix` where none is above 0."""
        largest = max(weights, default=0.0)
        if largest <= 0 or min(weights) < 0 or len(names) != len(weights):
            raise EngineError(
                "corpus.mix",
                "The weights of the sources do not add up to a mix.",
                cause=", ".join(f"{name} {weight:g}" for name, weight in zip(names, weights, strict=False)),
                next_step="Give at least one source a weight above 0, and none below.",
            )
        units = [round(weight / largest * _WEIGHT_UNITS) for weight in weights]
        self._shares = tuple((name, unit) for name, unit in zip(names, units, strict=True) if unit)
        self._tokens = sequence_tokens
        self._sequences_of_step = sequences_of_step
        self._start = start or Position()
        self._before = array("q", [0])
        """Sequences before step n; grows as far as it was asked for."""
        self._growing = Lock()

    def step(self, number: int) -> tuple[Slice, ...]:
        """The sequences of step `number`, counted from 0 within the stage."""
        first, last = self._sequences_before(number), self._sequences_before(number + 1)
        counts = self._counts(first)
        slices = []
        for sequence in range(first + 1, last + 1):
            after = self._counts(sequence)
            taken = next(index for index, count in enumerate(after) if count != counts[index])
            name = self._shares[taken][0]
            slices.append(Slice(name, self._start.of(name) + counts[taken] * self._tokens, self._tokens))
            counts = after
        return tuple(slices)

    def position_after(self, steps: int) -> Position:
        """Where every stream stands when `steps` steps are done."""
        counts = self._counts(self._sequences_before(steps))
        taken = dict(self._start.tokens)
        for (name, _), count in zip(self._shares, counts, strict=True):
            taken[name] = self._start.of(name) + count * self._tokens
        return Position(MappingProxyType(taken))

    def tokens_before(self, step: int) -> int:
        """Tokens of all steps before `step`."""
        return self._sequences_before(step) * self._tokens

    def _sequences_before(self, step: int) -> int:
        with self._growing:
            while len(self._before) <= step:
                self._before.append(self._before[-1] + self._sequences_of_step(len(self._before) - 1))
            return self._before[step]

    def _counts(self, sequences: int) -> tuple[int, ...]:
        """How many of the first `sequences` each domain gets: its rounded share of what those before it left.

        Every count rises by at most one per sequence, and exactly one of them does, because a share of a share is at
        most 1; each stays within half the number of domains of its weight's exact share (own derivation).
        """
        found = []
        left, units_left = sequences, sum(unit for _, unit in self._shares)
        for _, unit in self._shares:
            count = (2 * left * unit + units_left) // (2 * units_left)
            found.append(count)
            left -= count
            units_left -= unit
        return tuple(found)
