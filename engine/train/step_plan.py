"""Which sequences each optimizer step holds: one list, made before the first step from the spec and the lengths alone.

Owns order, turns and step borders. Must not know torch, tokens or files. Because everything follows from the seed, a
job that is resumed at step n has the steps after n that it would have had.

    step 1: [long 3 9] [short 0 4 7 2] [long 1 5]     micro-batches, filled until the step holds tokens_per_step
    step 2: ...

A pool is the data cut to one length. `full` has one, a curriculum one per length, `mixed` a long and a short one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Pool:
    """Sequences of one kind."""

    name: str
    """Part of the shuffle's seed."""
    tokens: tuple[int, ...]
    """Of every sequence."""
    per_batch: int
    """Sequences in a micro-batch."""
    original_positions: bool = False
    """Trained with the rotary embedding of before (mixed window)."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Sequences that go through the model together."""

    pool: int
    indices: tuple[int, ...]
    epoch: int
    """Of its pool, from 0."""


Step = tuple[MicroBatch, ...]
_NextBatch = Callable[[], MicroBatch]


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When a step is complete, and when the job is."""

    tokens_per_step: int
    """0 counts micro-batches."""
    accumulation: int
    max_steps: int
    """0 goes by epochs."""
    epochs: float
    seed: int
    short_share: float = 0.0
    """Share of the tokens that the second of two pools gets."""


@dataclass(slots=True)
class _Reader:
    """Walks through a pool, shuffled anew in every epoch. Mutable: a cursor."""

    pool: Pool
    number: int
    seed: int
    epoch: int = 0
    read: int = 0
    """Sequences, over all epochs."""
    order: list[int] = field(default_factory=list)

    def next(self) -> MicroBatch:
        """The next micro-batch; the last one of an epoch may be smaller."""
        if not self.order:
            self.epoch = self.read // len(self.pool.tokens)
            self.order = list(range(len(self.pool.tokens)))
            random.Random(f"{self.seed} {self.pool.name} {self.epoch}").shuffle(self.order)
        taken, self.order = self.order[: self.pool.per_batch], self.order[self.pool.per_batch :]
        self.read += len(taken)
        return MicroBatch(self.number, tuple(taken), self.epoch)

    @property
    def passes(self) -> float:
        """Epochs read so far."""
        return self.read / len(self.pool.tokens)


def plan_steps(pools: Sequence[Pool], rhythm: Rhythm) -> tuple[Step, ...]:
    """One pool after another, in equal parts of the steps. Without `max_steps` the passes over all parts add up to
    `epochs`: a part that takes s_k steps per epoch sees T / (K s_k) of them, so T = epochs K / sum(1 / s_k)."""
    readers = [_Reader(pool, number, rhythm.seed) for number, pool in enumerate(pools)]
    if len(pools) == 1:
        return tuple(_steps_of(readers[0].next, readers[0], rhythm, rhythm.max_steps))
    total = rhythm.max_steps or max(len(pools), round(rhythm.epochs * len(pools) / _inverse_steps(pools, rhythm)))
    steps: list[Step] = []
    for number, reader in enumerate(readers):
        until = round(total * (number + 1) / len(pools))
        steps += _steps_of(reader.next, reader, rhythm, until - len(steps)) if until > len(steps) else ()
    return tuple(steps)


def _inverse_steps(pools: Sequence[Pool], rhythm: Rhythm) -> float:
    """Sum of 1 / steps per epoch."""
    total = 0.0
    for number, pool in enumerate(pools):
        reader = _Reader(pool, number, rhythm.seed)
        once = Rhythm(rhythm.tokens_per_step, rhythm.accumulation, 0, 1.0, rhythm.seed)
        total += 1 / sum(1 for _ in _steps_of(reader.next, reader, once, 0))
    return total


def plan_mixed_steps(long: Pool, short: Pool, rhythm: Rhythm) -> tuple[Step, ...]:
    """Micro-batches of both by turns, so that at any time the short ones have `short_share` of the tokens as nearly as
    whole micro-batches allow. Without `max_steps` the job ends when the long ones were seen `epochs` times."""
    readers = (_Reader(long, 0, rhythm.seed), _Reader(short, 1, rhythm.seed))
    given = [0, 0]

    def next_batch() -> MicroBatch:
        number = int(given[1] < rhythm.short_share * sum(given))
        batch = readers[number].next()
        given[number] += _tokens((long, short)[number], batch)
        return batch

    pools = (long, short)
    return tuple(_steps_of(next_batch, readers[0], rhythm, rhythm.max_steps, pools))


def _steps_of(
    next_batch: _NextBatch, leader: _Reader, rhythm: Rhythm, count: int, pools: Sequence[Pool] = ()
) -> Iterator[Step]:
    """`count` steps; with 0 until `leader` has read its epochs, the last step being as large as what is left."""
    made = 0
    while made < count or (not count and leader.passes < rhythm.epochs):
        step: list[MicroBatch] = []
        tokens = 0
        while not step or _goes_on(len(step), tokens, rhythm):
            if not count and leader.passes >= rhythm.epochs:
                break
            batch = next_batch()
            step.append(batch)
            tokens += _tokens(pools[batch.pool] if pools else leader.pool, batch)
        yield tuple(step)
        made += 1


def _goes_on(batches: int, tokens: int, rhythm: Rhythm) -> bool:
    return tokens < rhythm.tokens_per_step if rhythm.tokens_per_step else batches < rhythm.accumulation


def _tokens(pool: Pool, batch: MicroBatch) -> int:
    return sum(pool.tokens[index] for index in batch.indices)
