"""The whole schedule of a job, stage by stage: what a screen draws and an estimate is made from before anything starts.

Owns the shapes and where each figure of a stage comes from in the spec. Must not know models or text beyond the facts
that are handed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.jobs.spec import JobSpec, Task
from engine.schedule.ramp import BatchRamp
from engine.schedule.rates import RateCurve, rate_curve, unfreeze_step
from engine.schedule.steps import StageSteps, epoch_tokens, row_steps, shares, stream_steps
from engine.schedule.stops import rule_words


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model that a stage trains."""

    parameters: int
    operators: tuple[str, ...] = ()
    """What grew it before this stage."""
    window: int = 0
    """Tokens that its positions were made for; 0 unknown."""


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What there is to train on."""

    sources: Mapping[str, float]
    """Tokens of each source that are trained on; a source whose size nobody knows is left out."""
    row_tokens: float = 0.0
    """Of one epoch of rows, in jobs without sources."""
    row_sequences: int = 0
    """That they were packed into; 0 reckons with full sequences."""


@dataclass(frozen=True, slots=True)
class SourceShare:
    """A source in one stage."""

    name: str
    share: float
    """Of the stage's tokens."""
    tokens: float
    passes: float
    """How often it is read in this stage; 0 where its size is unknown."""
    known: bool
    """Whether the source's size is known."""


@dataclass(frozen=True, slots=True)
class StageLayout:
    """One stage. Steps and tokens before it count over the whole job."""

    number: int
    """From 1."""
    name: str
    task: Task
    first_step: int
    """Steps before this stage."""
    steps: int
    """0 for a stage that only grows."""
    first_token: float
    tokens: float
    lengths: tuple[int, ...]
    """Tokens of a sequence, one after another in equal parts of the steps; mostly one."""
    ramp: BatchRamp
    """Sequences per step."""
    mix: tuple[SourceShare, ...]
    """Of sources that are read; empty for rows."""
    rate: RateCurve
    peak: float
    """Learning rate."""
    new_peak: float
    """Of parameters that growth added."""
    has_new: bool
    """Whether parameters that growth added learn apart from the others."""
    model: ModelFacts
    trainable: tuple[str, ...]
    """Patterns; empty is all that the task trains."""
    stops: tuple[str, ...]
    """Rules that may end it earlier."""

    @property
    def last_step(self) -> int:
        return self.first_step + self.steps

    @property
    def last_token(self) -> float:
        return self.first_token + self.tokens

    @property
    def length(self) -> int:
        """The longest sequence, tokens."""
        return max(self.lengths)

    def length_at(self, step: int) -> int:
        """`step` counts from 0 within the stage."""
        return self.lengths[min(step * len(self.lengths) // max(self.steps, 1), len(self.lengths) - 1)]

    def rate_at(self, step: int) -> float:
        return self.peak * self.rate.factor(step)

    def new_rate_at(self, step: int) -> float:
        return self.new_peak * self.rate.new_factor(step)

    def tokens_before(self, step: int) -> float:
        """Tokens of the whole job before a step of this stage."""
        sequences = self.ramp.sequences_before(self.steps)
        return self.first_token + self.tokens * self.ramp.sequences_before(step) / max(sequences, 1)


@dataclass(frozen=True, slots=True)
class SchedulePoint:
    """The job just before one step."""

    step: int
    tokens: float
    """Trained before it."""
    stage: int
    """From 1."""
    rate: float
    """Of parameters that growth did not add."""
    new_rate: float
    """Of those that it added; `rate` where there are none."""
    length: int
    sequences: int
    shares: Mapping[str, float]
    parameters: int


@dataclass(frozen=True, slots=True)
class JobSchedule:
    """All stages."""

    stages: tuple[StageLayout, ...]
    warnings: tuple[str, ...]

    @property
    def steps(self) -> int:
        return self.stages[-1].last_step

    @property
    def tokens(self) -> float:
        return self.stages[-1].last_token

    @property
    def trained(self) -> tuple[StageLayout, ...]:
        """Stages with a training loop."""
        return tuple(stage for stage in self.stages if stage.steps)

    def points(self, count: int) -> tuple[SchedulePoint, ...]:
        """About `count` points evenly over the tokens; the first and last step of every stage are among them."""
        return tuple(point for stage in self.trained for point in _points(stage, count, self.tokens))


def lay_out(spec: JobSpec, models: Sequence[ModelFacts], text: TextFacts) -> JobSchedule:
    """The schedule of a spec. `models` has one entry per stage of `spec.staged()`.

    Raises EngineError `schedule.no_tokens` where the sources are empty and nothing else says the end.
    """
    from engine.schedule.warnings import warnings_of

    stages: list[StageLayout] = []
    step, token = 0, 0.0
    for number, (own, model) in enumerate(zip(spec.staged(), models, strict=True), 1):
        name = spec.stages[number - 1].name if spec.stages else ""
        stages.append(_stage(own, model, text, (number, name), (step, token)))
        step, token = stages[-1].last_step, stages[-1].last_token
    return JobSchedule(tuple(stages), warnings_of(spec, stages))


def _stage(
    spec: JobSpec, model: ModelFacts, text: TextFacts, called: tuple[int, str], begins: tuple[int, float]
) -> StageLayout:
    training = spec.training
    found, tokens = _extent(spec, model, text)
    joins = unfreeze_step(training, found.steps) if spec.task is Task.NEW_COORDINATES and training.unfreeze_after else 0
    return StageLayout(
        number=called[0],
        name=called[1],
        task=spec.task,
        first_step=begins[0],
        steps=found.steps,
        first_token=begins[1],
        tokens=tokens,
        lengths=spec.context.curriculum or (found.length,),
        ramp=found.ramp,
        mix=tuple(_mix(spec, text, tokens)) if spec.task.trains else (),
        rate=rate_curve(training, found.steps, old_from=joins),
        peak=training.learning_rate,
        new_peak=training.new_learning_rate or training.learning_rate,
        has_new=bool(spec.task.trains_model and (training.new_learning_rate or training.new_warmup_ratio or joins)),
        model=model,
        trainable=training.trainable,
        stops=rule_words(spec.stop) if spec.task.trains else (),
    )


def _extent(spec: JobSpec, model: ModelFacts, text: TextFacts) -> tuple[StageSteps, float]:
    """Steps and tokens."""
    length = sequence_length(spec, model.window)
    full = spec.training.batch_size * spec.training.gradient_accumulation
    if not spec.task.trains:
        return StageSteps(0, length, BatchRamp(full, full, 0)), 0.0
    if spec.streams:
        found = stream_steps(spec, epoch_tokens(spec.sources, text.sources))
        return found, float(found.tokens)
    full = max(math.ceil(spec.training.tokens_per_step / length), 1) if spec.training.tokens_per_step else full
    sequences = text.row_sequences or max(math.ceil(text.row_tokens / length), 1)
    if spec.training.tokens_per_step and not spec.training.max_steps:
        steps = max(math.ceil(spec.training.epochs * sequences / full), 1)
    else:
        steps = row_steps(spec.training, sequences)
    tokens = text.row_tokens / sequences * full * steps
    if not spec.training.max_steps:
        tokens = min(tokens, text.row_tokens * spec.training.epochs)
    return StageSteps(steps, length, BatchRamp(full, full, 0)), tokens


def sequence_length(spec: JobSpec, window: int) -> int:
    """Tokens of the longest sequence that trains: with PoSE the short one, whatever the target."""
    context = spec.context
    if context.extends and context.window == "pose":
        return min(context.train_length or window or spec.data.max_length, spec.data.max_length)
    return max(context.curriculum, default=spec.data.max_length)


def _mix(spec: JobSpec, text: TextFacts, tokens: float) -> Iterator[SourceShare]:
    for name, share in shares(spec.sources).items():
        if share:
            size = text.sources.get(name, 0.0)
            yield SourceShare(name, share, share * tokens, share * tokens / size if size else 0.0, size > 0)


def _points(stage: StageLayout, count: int, tokens: float) -> Iterator[SchedulePoint]:
    """At least the first and last step, and a share of `count` by the stage's share of the tokens."""
    wanted = max(round(count * stage.tokens / tokens) if tokens else 0, 2)
    places = [round(number * (stage.steps - 1) / (wanted - 1)) for number in range(wanted)]
    mix = {source.name: source.share for source in stage.mix}
    for step in dict.fromkeys(places):
        rate = stage.rate_at(step)
        yield SchedulePoint(
            step=stage.first_step + step,
            tokens=stage.tokens_before(step),
            stage=stage.number,
            rate=rate,
            new_rate=stage.new_rate_at(step) if stage.has_new else rate,
            length=stage.length_at(step),
            sequences=stage.ramp.sequences_of(step),
            shares=mix,
            parameters=stage.model.parameters,
        )
