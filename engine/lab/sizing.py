"""How many steps every arm is given, so that all spend the same.

Owns counting a step of an arm (tokens, operations) and dividing the budget by it. Must not know statistics or how runs
are started. Operations are those of the training steps alone, as `engine.estimate.flops` counts them: multiplications
of forward and backward of what the worker computes, padding included, attention included, for frozen weights without
their gradients. Growth itself, evaluations and checkpoints are not in the budget; they are in the hours and the money.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from engine.advise.spec_growth import SpecGrowth, growth_of
from engine.advise.spec_plan import appraise_spec, load_of_spec, workload_of
from engine.data.load import survey
from engine.data.shape import data_shape
from engine.errors import EngineError
from engine.estimate.data_shape import DataShape
from engine.estimate.flops import step_work
from engine.hardware.detect import detect
from engine.hardware.machine import Machine
from engine.jobs.spec import JobSpec, StopSection
from engine.jobs.spec_toml import with_absolute_paths
from engine.lab.lab_file import Arm, BudgetKind, Lab, Start
from engine.models.analyze import analyze_model
from engine.models.architecture import Architecture
from engine.models.resolve import resolve_model
from engine.models.source import ModelRef


@dataclass(frozen=True, slots=True)
class StageSize:
    """One stage of an arm, or the whole of one without stages."""

    share: int
    """Steps that the spec gives it; the budget scales all stages alike."""
    tokens: float
    """Real ones, of a step."""
    flops: float
    """Of a step."""
    parameters: int
    seconds: float
    """Predicted, of a step."""
    steps: int = 0


@dataclass(frozen=True, slots=True)
class ArmSize:
    """What an arm is given, the same with every seed."""

    name: str
    stages: tuple[StageSize, ...]
    overhead_seconds: float = 0.0
    """Predicted, of everything that is not a training step."""

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> float:
        return sum(stage.steps * stage.tokens for stage in self.stages)

    @property
    def flops(self) -> float:
        return sum(stage.steps * stage.flops for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Predicted, of the whole run."""
        return sum(stage.steps * stage.seconds for stage in self.stages) + self.overhead_seconds

    @property
    def parameters(self) -> int:
        """Of the model in the end, adapters not counted."""
        return self.stages[-1].parameters

    def flops_at(self, step: float, done: Sequence[int] = ()) -> float:
        """Operations spent after so many steps. `done`: of each stage, where rules ended one early; () as planned."""
        return sum(steps * stage.flops for steps, stage in zip(self._until(step, done), self.stages, strict=True))

    def tokens_at(self, step: float, done: Sequence[int] = ()) -> float:
        """Tokens seen after so many steps; `done` as for `flops_at`."""
        return sum(steps * stage.tokens for steps, stage in zip(self._until(step, done), self.stages, strict=True))

    def _until(self, step: float, done: Sequence[int]) -> list[float]:
        """Steps of each stage among the first `step` of all."""
        found, left = [], step
        for steps in done or [stage.steps for stage in self.stages]:
            found.append(min(left, steps))
            left -= found[-1]
        return found


@dataclass(frozen=True, slots=True)
class Sizes:
    """All arms, and how they were sized, in words."""

    arms: tuple[ArmSize, ...]
    how: str

    def of(self, name: str) -> ArmSize:
        """The size of the arm called so."""
        return next(size for size in self.arms if size.name == name)


class Counter:
    """Counts steps of arms; looks at each model and each data section once."""

    def __init__(self, lab: Lab, machine: Machine | None = None) -> None:
        self._lab = lab
        self._machine = machine or detect()
        self._models: dict[str, tuple[ModelRef, Architecture]] = {}
        self._data: dict[str, DataShape] = {}

    def model_of(self, spec: JobSpec) -> tuple[ModelRef, Architecture]:
        """Raises EngineError `model.*`."""
        key = f"{spec.model.source}@{spec.model.revision}"
        if key not in self._models:
            ref = resolve_model(spec.model.source, revision=spec.model.revision)
            if ref.path is None:
                raise EngineError(
                    "model.no_weights",
                    f"'{spec.model.source}' names a known shape, not weights that can be trained.",
                    next_step="Give a folder, or a hub id that was downloaded, in spec.model.source.",
                )
            self._models[key] = (ref, analyze_model(ref))
        return self._models[key]

    def growth_of(self, arm: Arm) -> SpecGrowth | None:
        """What becomes of the arm's model. Raises EngineError `expansion.*`."""
        spec = self.located(arm.spec)
        ref, architecture = self.model_of(spec)
        return growth_of(spec, ref, architecture)

    def located(self, spec: JobSpec) -> JobSpec:
        """With absolute file names."""
        return with_absolute_paths(spec, self._lab.base.absolute())

    def count(self, arm: Arm) -> ArmSize:
        """An arm without steps yet. Raises EngineError for a model or data that cannot be used."""
        spec = self.located(arm.spec)
        stages: list[StageSize] = []
        overhead = 0.0
        for number, part in enumerate(spec.staged()):
            if not part.task.trains:
                continue
            so_far = msgspec.structs.replace(spec, stages=spec.stages[: number + 1]) if spec.stages else spec
            share = part.training.max_steps if spec.stages else 1
            size, around = self._stage(part, so_far, share)
            stages.append(size)
            overhead += around
        return ArmSize(arm.name, tuple(stages), overhead)

    def _stage(self, part: JobSpec, so_far: JobSpec, share: int) -> tuple[StageSize, float]:
        ref, architecture = self.model_of(so_far)
        growth = growth_of(so_far, ref, architecture)
        assert ref.path is not None
        data = self._shape(part, ref.path)
        work = workload_of(part, architecture, self._machine, trained_share=data.trained_share, growth=growth)
        width = min(data.width or work.sequence, work.sequence)
        work = replace(work, sequence=width)
        counts = step_work(work)
        flops = counts.matmul_flops + counts.fp32_flops + counts.attention_flops + counts.fp32_attention_flops
        computed = float(work.tokens * work.accumulation)
        parameters = growth.architecture.parameters if growth else architecture.parameters
        seconds, around = self._seconds(part, architecture, growth, data)
        size = StageSize(share, computed * data.fill.likely, flops * work.accumulation, parameters, seconds)
        return size, around

    def _seconds(
        self, part: JobSpec, architecture: Architecture, growth: SpecGrowth | None, data: DataShape
    ) -> tuple[float, float]:
        """(of a step, of everything around the steps), from the estimates of one and of two hundred steps."""
        few, many = 1, 201
        hours = []
        for steps in (few, many):
            training = msgspec.structs.replace(part.training, max_steps=steps)
            evaluation = msgspec.structs.replace(part.evaluation, every_steps=0)
            spec = msgspec.structs.replace(part, training=training, evaluation=evaluation, stop=StopSection())
            load = load_of_spec(spec, architecture, self._machine, data.tokens, base_on_disk=True, data=data)
            found = appraise_spec(spec, architecture, self._machine, load, growth=growth)
            hours.append(found.hours.likely * 3600)
        step = (hours[1] - hours[0]) / (many - few)
        return step, max(hours[0] - step, 0.0)

    def _shape(self, spec: JobSpec, folder: Path) -> DataShape:
        """Of rows as they were counted; a stream fills every sequence, and every position carries loss."""
        if spec.streams:
            full = float(spec.data.max_length)
            return DataShape(tokens=(full, full, full), width=spec.data.max_length)
        key = repr((spec.data, spec.training.batch_size, folder))
        if key not in self._data:
            report = survey(spec.data, folder)
            self._data[key] = data_shape(report, batch_size=spec.training.batch_size, base_text=spec.data.base_text)
        return self._data[key]


def sizes_of(lab: Lab, counter: Counter, step_seconds: dict[str, float] | None = None) -> Sizes:
    """Steps for every arm. `step_seconds`: measured ones by arm, for a budget in seconds; else predicted. Raises
    EngineError `lab.budget` when an arm could not even do one step for each stage."""
    budget = lab.file.budget
    arms: list[ArmSize] = []
    for arm in lab.arms:
        size = counter.count(arm)
        arms.append(_scaled(size, budget.kind, budget.amount, (step_seconds or {}).get(arm.name)))
    return Sizes(tuple(arms), _how(budget.kind, budget.amount, measured=bool(step_seconds)))


def _scaled(size: ArmSize, kind: BudgetKind, amount: float, measured_seconds: float | None) -> ArmSize:
    predicted = [stage.seconds for stage in size.stages]
    if measured_seconds is not None:
        mean = sum(s.share * s.seconds for s in size.stages) / sum(s.share for s in size.stages)
        predicted = [stage.seconds * measured_seconds / mean for stage in size.stages]
    cost = {
        BudgetKind.TOKENS: [stage.tokens for stage in size.stages],
        BudgetKind.FLOPS: [stage.flops for stage in size.stages],
        BudgetKind.WALL_CLOCK: predicted,
    }[kind]
    turns = amount / sum(stage.share * one for stage, one in zip(size.stages, cost, strict=True))
    stages = tuple(
        replace(stage, steps=round(turns * stage.share), seconds=seconds)
        for stage, seconds in zip(size.stages, predicted, strict=True)
    )
    if any(stage.steps < 1 for stage in stages):
        one = sum(cost)
        raise EngineError(
            "lab.budget",
            f"The budget of {amount:.3g} {kind.value} is less than one step of arm '{size.name}' ({one:.3g}).",
            next_step="Raise budget.amount, or lower batch_size or max_length.",
        )
    return replace(size, stages=stages)


def _how(kind: BudgetKind, amount: float, *, measured: bool) -> str:
    if kind is BudgetKind.TOKENS:
        return f"Every arm trains on {amount:,.0f} tokens (padding not counted), to the nearest step."
    if kind is BudgetKind.FLOPS:
        return (
            f"Every arm spends {amount:.3g} floating-point operations in its training steps, to the nearest step, as "
            "counted for its shape and task: multiplications of forward and backward, attention and padding included; "
            "growing, evaluating and saving are not counted here, but are in hours and money."
        )
    source = "measured in a short run of each arm" if measured else "predicted (it is measured before the arms run)"
    return f"Every arm trains for {amount:,.0f} seconds, to the nearest step; the time of a step was {source}."


def spec_for(lab: Lab, arm: Arm, size: ArmSize, seed: int, random_model: Path | None) -> JobSpec:
    """The ordinary job that is one arm with one seed; file names are absolute. `random_model` is the folder of an arm
    that starts at random."""
    spec = with_absolute_paths(arm.spec, lab.base.absolute())
    change = msgspec.structs.replace
    every = spec.evaluation.every_steps or max(size.steps // lab.file.points, 1)
    stages = iter(size.stages)
    staged = tuple(
        change(stage, max_steps=next(stages).steps) if spec.task_of(stage).trains else stage for stage in spec.stages
    )
    expansion = change(spec.expansion, seed=seed)
    model = spec.model
    if arm.start is Start.RANDOM and random_model is not None:
        model = change(model, source=str(random_model), revision="")
        expansion = type(expansion)()
    return change(
        spec,
        name=f"{lab.file.name}: {arm.name}, seed {seed}"[:80],
        model=model,
        expansion=expansion,
        training=change(spec.training, seed=seed, max_steps=0 if staged else size.steps),
        evaluation=change(spec.evaluation, every_steps=every),
        stages=staged,
    )
