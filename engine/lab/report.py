"""The report of a lab as data: arms, figures, verdicts, curves; and writing it in its three forms.

Owns the shape of `report.json` and its making from runs that are there, all of them or not yet. Must not know how pages
look (`engine.lab.report_html`, `engine.lab.report_markdown`).
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean

import msgspec

from engine.errors import EngineError
from engine.jobs import layout
from engine.lab.folder import REPORT, REPORT_PAGE, REPORT_TEXT, LabFolder, Record
from engine.lab.lab_file import BudgetKind, Lab, differing
from engine.lab.results import RunResult, collect
from engine.lab.verdicts import Ground, Verdict, decide, mean_of

METHOD = (
    "Means over seeds. Intervals are 95 % by Student's t over seeds; arms are compared by their differences seed by "
    "seed (equal seeds give equal data order), with intervals that hold together for all comparisons with the best "
    "arm. With few seeds they are wide: a difference that is called uncertain here may still be one. Learning "
    "rates are those that the lab gives; none was tuned per arm, and an arm may do better with another."
)


class ArmRow(msgspec.Struct, frozen=True, kw_only=True):
    """One arm: what it is, and what it cost."""

    name: str
    start: str
    task: str
    parameters: int
    trainable_parameters: int
    steps: int
    finished: int
    """Seeds."""
    tokens: float
    flops: float
    """Of a run: steps, tokens and operations as planned; where runs ended early, the mean of what they did."""
    hours: float | None
    """Mean working time of a run, everything included; None before one is finished."""
    training_seconds: float | None
    usd: float | None


class CurveOf(msgspec.Struct, frozen=True, kw_only=True):
    """Held-out loss of an arm against what was spent."""

    arm: str
    spent: tuple[float, ...]
    mean: tuple[float, ...]
    seeds: tuple[tuple[float, ...], ...]
    """One curve per seed, at the same places."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a lab found."""

    name: str
    title: str
    question: str
    how: str
    """How arms were sized."""
    method: str
    model: str
    machine: str
    program_version: str
    created: float
    written: float
    seeds: tuple[int, ...]
    finished: int
    total: int
    spent_in: str
    """Unit of the curves' x axis: tokens, flops or wall-clock (seconds)."""
    arms: tuple[ArmRow, ...]
    verdicts: tuple[Verdict, ...]
    curves: tuple[CurveOf, ...]
    runs: tuple[RunResult, ...]
    notes: tuple[str, ...] = ()
    v: int = 1

    @property
    def complete(self) -> bool:
        return self.finished == self.total

    @property
    def day(self) -> str:
        """On which the lab began, as 2026-11-26."""
        return time.strftime("%Y-%m-%d", time.gmtime(self.created))


def make_report(lab: Lab, folder: LabFolder) -> Report:
    """From the runs as they are now. Raises EngineError `lab.not_begun`."""
    record = folder.record()
    if record is None:
        raise EngineError(
            "lab.not_begun",
            f"Lab {lab.file.name} has no runs yet.",
            next_step="Run it without --report first.",
        )
    return report_of(lab, record, collect(lab, folder, record))


def report_of(lab: Lab, record: Record, runs: tuple[RunResult, ...]) -> Report:
    """From results, wherever they were kept."""
    ground = Ground(runs, record.sizes, {arm.name: arm.start for arm in lab.arms})
    return Report(
        name=lab.file.name,
        title=lab.file.title,
        question=lab.file.question,
        how=record.sizes.how + _early_words(ground),
        method=METHOD,
        model=", ".join(dict.fromkeys(arm.spec.model.source for arm in lab.arms)),
        machine=record.machine,
        program_version=record.program_version,
        created=record.created,
        written=time.time(),
        seeds=lab.file.seeds,
        finished=sum(run.finished for run in runs),
        total=len(runs),
        spent_in=lab.file.budget.kind.value,
        arms=tuple(_arm_row(lab, index, record, ground) for index in range(len(lab.arms))),
        verdicts=tuple(decide(goal, ground) for goal in lab.file.goals),
        curves=tuple(_curve(arm.name, ground, lab.file.budget.kind) for arm in lab.arms if ground.of(arm.name)),
        runs=runs,
        notes=(*_stated(lab), *_notes(runs)),
    )


def write_report(folder: LabFolder, report: Report) -> tuple[Path, ...]:
    """JSON, page and text, each atomically; returns their paths."""
    from engine.lab.report_html import render
    from engine.lab.report_markdown import markdown

    texts = {
        REPORT: msgspec.json.format(msgspec.json.encode(report)) + b"\n",
        REPORT_PAGE: render(report).encode(),
        REPORT_TEXT: markdown(report).encode(),
    }
    for name, content in texts.items():
        layout.write_atomic(folder.path / name, content)
    return tuple(folder.path / name for name in texts)


def _arm_row(lab: Lab, index: int, record: Record, ground: Ground) -> ArmRow:
    arm = lab.arms[index]
    runs, size = ground.of(arm.name), record.sizes.of(arm.name)
    hours = mean_of(runs, "hours")
    early = any(run.steps != size.steps for run in runs)
    tasks = [arm.spec.task_of(stage).value for stage in arm.spec.stages] or [arm.spec.task.value]
    return ArmRow(
        name=arm.name,
        start=arm.start.value,
        task=", then ".join(dict.fromkeys(tasks)),
        parameters=size.parameters,
        trainable_parameters=max((run.trainable_parameters for run in runs), default=0),
        steps=round(fmean(run.steps for run in runs)) if early else size.steps,
        finished=len(runs),
        tokens=fmean(size.tokens_at(run.steps, run.stage_steps) for run in runs) if early else size.tokens,
        flops=fmean(size.flops_at(run.steps, run.stage_steps) for run in runs) if early else size.flops,
        hours=hours,
        training_seconds=sum(run.training_seconds for run in runs) / len(runs) if runs else None,
        usd=mean_of(runs, "usd") if arm.spec.usd_per_hour else None,
    )


def _curve(arm: str, ground: Ground, kind: BudgetKind) -> CurveOf:
    """Over the steps that every seed of the arm was evaluated at."""
    runs = [run for run in ground.of(arm) if run.curve]
    shared = sorted(set.intersection(*({point.step for point in run.curve} for run in runs))) if runs else []
    size = ground.sizes.of(arm)
    lines = []
    for run in runs:
        losses = {point.step: point.loss for point in run.curve}
        lines.append(tuple(losses[step] for step in shared))
    spent: list[float] = []
    for step in shared:
        if kind is BudgetKind.TOKENS:
            spent.append(fmean(size.tokens_at(step, run.stage_steps) for run in runs))
        elif kind is BudgetKind.FLOPS:
            spent.append(fmean(size.flops_at(step, run.stage_steps) for run in runs))
        else:
            spent.append(sum(run.training_seconds * step / max(run.steps, 1) for run in runs) / len(runs))
    mean = tuple(sum(values) / len(values) for values in zip(*lines, strict=True))
    return CurveOf(arm=arm, spent=tuple(spent), mean=mean, seeds=tuple(lines))


def _early_words(ground: Ground) -> str:
    """Which runs a rule ended before the budget was spent; "" when none."""
    early = [
        f"{run.arm}, seed {run.seed}, at step {run.steps:,} of {size.steps:,}"
        for arm in ground.starts
        for run in ground.of(arm)
        if run.steps < (size := ground.sizes.of(arm)).steps
    ]
    if not early:
        return ""
    return f" Not so for runs that ended early: {'; '.join(early)}. The table has what they really spent."


def _stated(lab: Lab) -> tuple[str, ...]:
    """What the arms do not share, as the lab says itself."""
    first = lab.arms[0].spec
    found = dict.fromkeys(key for arm in lab.arms[1:] for key in differing(first, arm.spec))
    return (f"Arms differ in {', '.join(found)}: their figures are not of the same thing.",) if found else ()


def _notes(runs: tuple[RunResult, ...]) -> tuple[str, ...]:
    return tuple(
        f"{run.arm}, seed {run.seed}: {run.state}{f', {run.what}' if run.what else ''}"
        for run in runs
        if not run.finished
    )
