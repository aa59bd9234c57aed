"""What came of every run of a lab, as figures by name.

Owns reading cards and journals of runs that are there, finished or not. Must not know goals or intervals.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.jobs import events as ev
from engine.jobs.card import Card, Scores
from engine.jobs.card_io import read_card
from engine.jobs.state import RunPhase, RunState
from engine.jobs.store import load_state
from engine.jobs.summary import summarize
from engine.lab.folder import LabFolder, Record
from engine.lab.lab_file import Arm, Lab
from engine.lab.sizing import ArmSize

_METRICS = ("exact_match", "acc_norm", "acc")
"""Of a benchmark that has several, the first of these; else its first."""


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One held-out evaluation."""

    step: int
    loss: float


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """One arm with one seed."""

    arm: str
    seed: int
    run_id: str = ""
    state: str = "missing"
    what: str = ""
    """Why it is not finished, where it said so."""
    parameters: int = 0
    trainable_parameters: int = 0
    steps: int = 0
    training_seconds: float = 0.0
    before: dict[str, float] = {}
    """By figure, of the model as it came into training."""
    after: dict[str, float] = {}
    """By figure, costs included."""
    curve: tuple[Point, ...] = ()
    """Held-out loss; step 0 is before training."""

    @property
    def finished(self) -> bool:
        return self.state == RunPhase.FINISHED.value


def collect(lab: Lab, folder: LabFolder, record: Record) -> tuple[RunResult, ...]:
    """Every arm with every seed, arm by arm; those without a run are "missing"."""
    runs = folder.runs()
    found = []
    for arm in lab.arms:
        for seed in lab.file.seeds:
            run_dir = runs.get((arm.name, seed))
            if run_dir is None:
                found.append(RunResult(arm=arm.name, seed=seed))
            else:
                found.append(_result(arm, seed, run_dir, record.sizes.of(arm.name)))
    return tuple(found)


def _result(arm: Arm, seed: int, run_dir: Path, size: ArmSize) -> RunResult:
    state = load_state(run_dir)
    known = RunResult(arm=arm.name, seed=seed, run_id=run_dir.name, state=state.state.value, what=state.what)
    if state.state is not RunPhase.FINISHED:
        return known
    try:
        card = read_card(run_dir)
    except EngineError as error:
        return msgspec.structs.replace(known, state="damaged", what=error.what)
    before, after = _scores(card.before), _scores(card.after)
    _add_findings(state, before, after)
    after |= {
        "flops": size.flops_at(card.steps),
        "tokens": float(card.tokens),
        "hours": card.working_seconds / 3600,
        "usd": card.cost_usd or summarize(run_dir).cost_usd,
    }
    return msgspec.structs.replace(
        known,
        what="",
        parameters=state.parameters,
        trainable_parameters=state.trainable_parameters,
        steps=card.steps,
        training_seconds=card.training_seconds,
        before=before,
        after=after,
        curve=_curve(card),
    )


def _scores(scores: Scores | None) -> dict[str, float]:
    if scores is None:
        return {}
    figures = {
        "task_loss": scores.task_loss,
        "exact_match": scores.exact_match,
        "base_perplexity": scores.base_perplexity,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _add_findings(state: RunState, before: dict[str, float], after: dict[str, float]) -> None:
    """Suites, benchmarks and retention from the journal."""
    findings = state.findings
    for name, series in findings.suites.items():
        buckets = series.buckets()
        if buckets and buckets[0].first_step == 0:
            before[f"suite:{name}"] = buckets[0].mean
    for name, score in findings.suite_scores.items():
        after[f"suite:{name}"] = score.bits_per_byte
    last = max((score.step for score in findings.benchmarks), default=0)
    for figures, step in ((before, 0), (after, last)):
        whole = [score for score in findings.benchmarks if score.step == step and not score.part]
        for task in dict.fromkeys(score.task for score in whole):
            figures[f"benchmark:{task}"] = _main([score for score in whole if score.task == task]).value
    if findings.retention is not None:
        for report in findings.retention.reports:
            falls = report.unit == "bits per byte"
            after[f"retention:{report.on}"] = -report.delta if falls else report.delta


def _main(scores: list[ev.BenchmarkScore]) -> ev.BenchmarkScore:
    for metric in _METRICS:
        for score in scores:
            if score.metric == metric:
                return score
    return scores[0]


def _curve(card: Card) -> tuple[Point, ...]:
    points = {point.step: point.value for point in card.eval_curve}
    if card.before is not None:
        points[0] = card.before.task_loss
    if card.after is not None:
        points[card.steps] = card.after.task_loss
    return tuple(Point(step, points[step]) for step in sorted(points))
