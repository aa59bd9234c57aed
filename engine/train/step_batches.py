"""Planned steps as data: one item of the data set is everything that one optimizer step computes.

Owns turning a plan of steps into batches. Must not know why steps are made up as they are (`engine.train.step_plan`).
The Trainer then sees one item per step, in order: what it skips on a resume is whole steps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import Dataset

from engine.train.batches import Collator, SequenceDataset, TensorSequence
from engine.train.course import Course
from engine.train.skipped_positions import skipped_positions
from engine.train.step_plan import MicroBatch, Pool, Step

ORIGINAL = "original_positions"
"""Key of a micro-batch: whether it is trained with the rotary embedding of before."""


@runtime_checkable
class PlannedSteps(Protocol):
    """A data set of whole steps, taken in order: item i is the list of micro-batches of step i + 1."""

    @property
    def course(self) -> Course:
        """Which window of the plan each step takes."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> list[dict[str, Any]]: ...

    def passes_after(self, steps: int) -> float:
        """Passes over the data after so many steps."""
        ...


@dataclass(frozen=True, slots=True)
class Skips:
    """How positions of short sequences are spread (PoSE)."""

    target: int
    """L', tokens."""
    chunks: int
    seed: int


@dataclass(frozen=True, slots=True)
class Lessons:
    """All steps of a job."""

    pools: tuple[Pool, ...]
    sequences: tuple[SequenceDataset, ...]
    """Of the pools."""
    steps: tuple[Step, ...]
    skips: Skips | None = None

    @property
    def tokens(self) -> int:
        """Of one pass over every pool; a curriculum's pools are the same data."""
        return self._count("tokens")

    @property
    def trained_tokens(self) -> int:
        return self._count("trained_tokens")

    def _count(self, name: str) -> int:
        counted = self.sequences if any(pool.original_positions for pool in self.pools) else self.sequences[-1:]
        return sum(int(getattr(sequences, name)) for sequences in counted)

    @property
    def passes(self) -> tuple[float, ...]:
        """After each step: passes over the data; of mixed windows over the long sequences."""
        counted = self.pools[:1] if any(pool.original_positions for pool in self.pools) else self.pools
        found, done = [], 0.0
        for step in self.steps:
            for batch in step:
                if batch.pool < len(counted):
                    done += len(batch.indices) / len(counted[batch.pool].tokens)
            found.append(done)
        return tuple(found)


class StepDataset(Dataset[list[dict[str, Any]]]):
    """Item i is the list of micro-batches of step i + 1."""

    def __init__(self, lessons: Lessons, pad_id: int, course: Course | None = None) -> None:
        self.lessons = lessons
        self.course = course or Course(windows=len(lessons.steps))
        self._collator = Collator(pad_id)
        self._passes = lessons.passes

    def __len__(self) -> int:
        return len(self.lessons.steps)

    def passes_after(self, steps: int) -> float:
        """Passes over the data after so many steps."""
        rounds, last = divmod(self.course.windows_before(steps), len(self._passes))
        return rounds * self._passes[-1] + (self._passes[last - 1] if last else 0.0)

    @property
    def tokens(self) -> int:
        """Of one pass over the data."""
        return self.lessons.tokens

    @property
    def trained_tokens(self) -> int:
        return self.lessons.trained_tokens

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        window = self.course.window_of(index) % len(self)
        return [self._batch(window, number, batch) for number, batch in enumerate(self.lessons.steps[window])]

    def _batch(self, step: int, number: int, batch: MicroBatch) -> dict[str, Any]:
        sequences: Sequence[TensorSequence] = [self.lessons.sequences[batch.pool][index] for index in batch.indices]
        skips = self.lessons.skips
        if skips is not None:
            places = [f"{skips.seed} {step} {number} {row}" for row in range(len(sequences))]
            sequences = [_spread(one, skips, place) for one, place in zip(sequences, places, strict=True)]
        collated = self._collator(sequences)
        if skips is not None:
            collated["attention_mask"] = _mask(sequences, collated["input_ids"].shape[1])
        return {**collated, ORIGINAL: self.lessons.pools[batch.pool].original_positions}


def _spread(sequence: TensorSequence, skips: Skips, place: str) -> TensorSequence:
    positions = skipped_positions(len(sequence.input_ids), skips.target, skips.chunks, random.Random(place))
    return replace(sequence, position_ids=torch.tensor(positions, dtype=torch.int32))


def _mask(sequences: Sequence[TensorSequence], width: int) -> torch.Tensor:
    """(B, T): ones, and zeros over padding. Skips in positions are not borders only where a mask is given."""
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        mask[row, : len(sequence.input_ids)] = 1
    return mask


def only_item(items: Sequence[Any]) -> Any:
    """The collator: a step is complete already."""
    (item,) = items
    return item
