"""The training data of one stage: drawn sequences, planned steps over rows, or planned steps over streamed text.

Owns which of them a spec means, how many steps that is, and the way back after a leap of the loss. Must not know models
beyond the padding token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.data.rows import EncodedRow
from engine.jobs.spec import JobSpec
from engine.schedule.steps import StageSteps, epoch_tokens, stream_steps
from engine.train.batches import SequenceDataset, make_dataset
from engine.train.course import Course, Setback
from engine.train.cutting import cut_rows
from engine.train.drawn_steps import drawn_lessons
from engine.train.job_data import JobData
from engine.train.lessons import plan_lessons, wants_plan
from engine.train.questions import total_steps
from engine.train.step_batches import Lessons, StepDataset
from engine.train.window import Window

if TYPE_CHECKING:
    from engine.train.stream_batches import StreamSteps


@dataclass(frozen=True, slots=True)
class StageStart:
    """What a stage's data depends on beside its spec."""

    pad_id: int
    window: Window | None = None
    position: dict[str, int] = field(default_factory=dict)
    """Of streams: tokens of each source that earlier stages took."""
    setbacks: tuple[Setback, ...] = ()
    """Of this stage."""
    ranked: bool = False
    """Several processes divide every step, so that each has to be planned."""


@dataclass(frozen=True, slots=True)
class StageData:
    """What is trained on."""

    dataset: SequenceDataset | StepDataset | StreamSteps
    steps: int
    rows: int
    """Rows, or documents in one epoch."""
    words: tuple[str, ...] = ()
    """What has to be said of it."""

    @property
    def stream(self) -> StreamSteps | None:
        """Where it is streamed text."""
        return None if isinstance(self.dataset, SequenceDataset | StepDataset) else self.dataset


def stage_data(spec: JobSpec, data: JobData, start: StageStart) -> StageData:
    """Of one of `JobSpec.staged()`. Raises EngineError `train.no_rows` and the like."""
    if data.corpus is not None:
        return _streamed(spec, data, start)
    if wants_plan(spec):
        planned = plan_lessons(spec, data.rows.train, start.window)
        return _planned(planned.lessons, data, start, planned.words)
    rows, words = _cut(spec, data.rows.train)
    sequences = make_dataset(rows, spec.data.max_length, packing=spec.data.packing)
    steps = total_steps(spec, len(sequences))
    if start.ranked:
        return _planned(drawn_lessons(spec, sequences, steps), data, start, words)
    return StageData(sequences, steps, len(data.rows.train), words)


def count_steps(spec: JobSpec, data: JobData) -> int:
    """Optimizer steps of a stage that has not begun."""
    if data.corpus is not None:
        return _found(spec, data).steps
    if wants_plan(spec):
        return len(plan_lessons(spec, data.rows.train, None).lessons.steps)
    rows, _ = _cut(spec, data.rows.train)
    return total_steps(spec, len(make_dataset(rows, spec.data.max_length, packing=spec.data.packing)))


def _cut(spec: JobSpec, rows: Sequence[EncodedRow]) -> tuple[Sequence[EncodedRow], tuple[str, ...]]:
    """Rows of a stage whose sequences are shorter than the job's longest."""
    cut = cut_rows(rows, spec.data.max_length)
    return cut.rows, (cut.words(),) if cut.words() else ()


def _planned(lessons: Lessons, data: JobData, start: StageStart, words: tuple[str, ...]) -> StageData:
    course = Course(start.setbacks, windows=len(lessons.steps))
    dataset = StepDataset(lessons, start.pad_id, course)
    return StageData(dataset, len(dataset), len(data.rows.train), words)


def _found(spec: JobSpec, data: JobData) -> StageSteps:
    assert data.corpus is not None
    return stream_steps(spec, epoch_tokens(spec.sources, {one.name: one.tokens for one in data.corpus.domains}))


def _streamed(spec: JobSpec, data: JobData, start: StageStart) -> StageData:
    from engine.corpus.steps import Position
    from engine.train.stream_batches import StreamSteps

    assert data.corpus is not None
    found = _found(spec, data)
    dataset = StreamSteps(spec, data.corpus, found, Position(start.position), Course(start.setbacks))
    return StageData(dataset, found.steps, dataset.documents)
