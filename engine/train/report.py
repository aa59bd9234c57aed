"""The before/after card, filled from the run's own journal and measurements.

Owns how promises are set against what happened. Must not know torch, nor how a card is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.jobs import card
from engine.jobs.fold import Fold
from engine.jobs.fold_evaluation import Findings
from engine.jobs.journal import JournalTail
from engine.jobs.length_report import LengthReport
from engine.jobs.series import Series
from engine.jobs.spec import JobSpec
from engine.jobs.stage_figures import stage_figures
from engine.jobs.summary import cost_usd
from engine.train.teacher_record import teacher_figures

if TYPE_CHECKING:
    from engine.evaluation.answers import Question
    from engine.evaluation.measure import Measurement


@dataclass(frozen=True, slots=True)
class Facts:
    """What the worker knows at the end that the journal does not say."""

    run_dir: Path
    spec: JobSpec
    spec_hash: str
    data_sha256: str
    created: float
    device: str
    versions: dict[str, str]
    steps: int
    tokens: int
    trained_tokens: int
    training_seconds: float
    before: Measurement | None
    after: Measurement | None
    questions: tuple[Question, ...]
    adapter: card.Adapter
    merged: card.MergeCheck | None
    notes: tuple[str, ...]
    growths: tuple[card.GrowthResult, ...] = ()
    lengths_before: LengthReport | None = None
    lengths_after: LengthReport | None = None
    readers: tuple[card.Reader, ...] = ()


def fold_of(run_dir: Path) -> Fold:
    """The journal so far, folded."""
    fold = Fold()
    fold.apply_all(JournalTail(run_dir).stream())
    return fold


def build_card(facts: Facts) -> card.Card:
    """Everything in one value; `engine.jobs.card_io` writes it."""
    fold = fold_of(facts.run_dir)
    state = fold.state
    return card.Card(
        run_id=facts.run_dir.name,
        name=facts.spec.name,
        task=facts.spec.task.value,
        model=facts.spec.model.source,
        created=facts.created,
        before=facts.before.scores if facts.before else None,
        after=facts.after.scores if facts.after else None,
        samples=_samples(facts),
        steps=facts.steps,
        tokens=facts.tokens,
        trained_tokens=facts.trained_tokens,
        training_seconds=facts.training_seconds,
        working_seconds=state.working_seconds,
        cost_usd=cost_usd(state.working_seconds, facts.spec.usd_per_hour),
        adapter=facts.adapter,
        merged=facts.merged,
        predicted=tuple(predicted_and_measured(facts, state.peak_bytes, state.working_seconds)),
        loss_curve=_curve(fold.series("loss")),
        eval_curve=_curve(fold.series("eval_loss")),
        spec_hash=facts.spec_hash,
        data_sha256=facts.data_sha256,
        attempts=max(state.attempt, 1),
        device=facts.device,
        versions=facts.versions,
        notes=facts.notes,
        growths=facts.growths,
        lengths_before=facts.lengths_before,
        lengths_after=facts.lengths_after,
        readers=facts.readers,
        stage_figures=stage_figures(JournalTail(facts.run_dir).stream()),
        curves=_followed(state.findings),
        recoveries=tuple(state.findings.recoveries),
        ranks=state.findings.ranks,
        teacher=teacher_figures(facts.run_dir, facts.spec, facts.steps),
    )


def _samples(facts: Facts) -> tuple[card.SampleComparison, ...]:
    if facts.before is None or facts.after is None:
        return ()
    return tuple(
        card.SampleComparison(prompt=question.prompt, before=before, after=after, expected=question.expected)
        for question, before, after in zip(facts.questions, facts.before.answers, facts.after.answers, strict=True)
    )


def predicted_and_measured(
    facts: Facts, peak_bytes: int | None, working_seconds: float
) -> list[card.PredictedMeasured]:
    """Memory, time of the whole run and speed; a promise that was not made is left out."""
    promise = facts.spec.prediction
    pairs: list[card.PredictedMeasured] = []
    if promise.memory_bytes_likely and peak_bytes:
        pairs.append(
            card.PredictedMeasured(
                name="memory",
                unit="bytes",
                low=promise.memory_bytes_low,
                likely=promise.memory_bytes_likely,
                high=promise.memory_bytes_high,
                measured=peak_bytes,
                origin=promise.origin,
            )
        )
    if promise.seconds_likely:
        pairs.append(
            card.PredictedMeasured(
                name="time",
                unit="seconds",
                low=promise.seconds_low,
                likely=promise.seconds_likely,
                high=promise.seconds_high,
                measured=working_seconds,
                origin=promise.origin,
            )
        )
    if promise.tokens_per_second and facts.training_seconds:
        speed = promise.tokens_per_second
        pairs.append(
            card.PredictedMeasured(
                name="speed",
                unit="tokens/s",
                low=promise.tokens_per_second_low or speed,
                likely=speed,
                high=promise.tokens_per_second_high or speed,
                measured=facts.tokens / facts.training_seconds,
                origin=promise.origin,
            )
        )
    return pairs


def _followed(findings: Findings) -> tuple[card.FollowedCurve, ...]:
    """Suites, and the benchmarks that were asked more than once."""
    curves = [
        card.FollowedCurve(name=name, unit="bits per byte", points=_curve(series))
        for name, series in findings.suites.items()
    ]
    points: dict[tuple[str, str], list[card.CurvePoint]] = {}
    for score in findings.benchmarks:
        points.setdefault((score.task, score.metric), []).append(card.CurvePoint(score.step, score.value))
    curves += [
        card.FollowedCurve(name=task, unit=metric, points=tuple(found)) for (task, metric), found in points.items()
    ]
    return tuple(curve for curve in curves if len(curve.points) > 1)


def _curve(series: Series) -> tuple[card.CurvePoint, ...]:
    return tuple(card.CurvePoint(bucket.last_step, bucket.mean) for bucket in series.buckets())
