"""Journals of continuation training: streams, suites, benchmarks, retention, recoveries, several processes, stages.

The same for every screen, page and command that shows such a run.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

from engine.jobs import events as ev
from engine.jobs.card import (
    Adapter,
    BenchmarkResult,
    Card,
    CurvePoint,
    FollowedCurve,
    Scores,
    StageRetention,
    SuiteResult,
)
from engine.jobs.fold import Fold
from engine.jobs.journal import JournalTail, JournalWriter
from engine.jobs.layout import JOURNAL
from engine.jobs.series import Series
from engine.jobs.spec import (
    CheckpointSection,
    CostSection,
    DataSection,
    DistributedSection,
    EvaluationSection,
    JobSpec,
    PredictionSection,
    RetentionSection,
    SourceSection,
    StageSection,
    StopSection,
    SuiteSection,
    Task,
    TrainingSection,
)
from engine.jobs.stage_figures import stage_figures
from engine.jobs.store import create_run
from tests.support.golden_runs import GIB, Golden, _meter, _write_runner

SUITES = {"web": (1.912, 1.61, 60.0), "code": (1.455, 1.08, 40.0), "general": (1.148, 1.152, 90.0)}
"""Bits per byte: before, long after, and the steps in which it gets there."""
TOKENS_PER_STEP = 4096
STAGES = {1: (1, "short"), 81: (2, "wider"), 161: (3, "deeper")}
"""First step -> number and name."""


@dataclass(frozen=True)
class Continuation:
    """What the journal should say."""

    steps: int = 140
    total_steps: int = 240
    outcome: str = ""
    recovery_at: int = 138
    """A spike at this step; 0 for none."""
    memory_at: int = 20
    """Out of memory at this step; 0 for none."""
    gate: str = ""
    wait_seconds: float = 0.004
    step_seconds: float = 1.31
    ranks: int = 2
    every: int = 20
    suites: tuple[str, ...] = tuple(SUITES)
    retention: bool = True
    seed: int = 7


def continuation_spec() -> JobSpec:
    """Three stages of a growing model on two sources."""
    return JobSpec(
        task=Task.FULL,
        name="court-rulings",
        data=DataSection(max_length=256),
        sources=(
            SourceSection(name="web", path="/data/web/*.jsonl.zst", weight=0.7),
            SourceSection(name="code", path="/data/code.parquet", weight=0.3),
        ),
        suites=(SuiteSection(name="general", path="general"),),
        retention=(RetentionSection(on="general", most_lost=0.05), RetentionSection(on="demo", action="hold")),
        training=TrainingSection(learning_rate=3e-4, batch_size=8, gradient_accumulation=1, max_tokens=983_040),
        stages=(
            StageSection(name="short", max_tokens=327_680, max_length=128),
            StageSection(name="wider", hidden=320, max_tokens=327_680),
            StageSection(name="deeper", layers=12, max_tokens=327_680, weights={"web": 0.4, "code": 0.6}),
        ),
        evaluation=EvaluationSection(every_steps=20, tasks=("demo",), tasks_every_steps=40),
        checkpoint=CheckpointSection(every_steps=20),
        stop=StopSection(spike_factor=3.0),
        distributed=DistributedSection(processes=2),
        cost=CostSection(usd_per_hour=0.44, budget_usd=5.0),
        prediction=PredictionSection(
            memory_bytes_low=int(1.0 * GIB),
            memory_bytes_likely=int(1.3 * GIB),
            memory_bytes_high=int(1.7 * GIB),
            seconds_low=240,
            seconds_likely=330,
            seconds_high=480,
            tokens_per_second=3000.0,
            origin="formula",
            machine="this machine",
        ),
    )


def write_continuation(wanted: Continuation | None = None, *, now: float | None = None) -> Path:
    """Make the run directory; returns it."""
    wanted = wanted or Continuation()
    run_dir = create_run(continuation_spec())
    now = time.time() if now is None else now
    began = now - 20 - wanted.steps * wanted.step_seconds
    _write_runner(run_dir, Golden(outcome=wanted.outcome), began, now)
    with JournalWriter(run_dir / JOURNAL) as journal:
        for event in continuation_events(wanted, began):
            journal.write(event)
    return run_dir


def continuation_events(wanted: Continuation, began: float) -> list[ev.AnyEvent]:
    """What the worker would have written."""
    noise, t = random.Random(wanted.seed), began
    out: list[ev.AnyEvent] = [
        ev.Start(t=t, attempt=1, pid=1, device="cpu, 2 threads"),
        ev.Plan(
            t=t + 1,
            total_steps=wanted.total_steps,
            rows=0,
            tokens_per_epoch=0,
            trained_tokens_per_epoch=0,
            parameters=3_412_224,
            trainable_parameters=3_412_224,
        ),
    ]
    if wanted.ranks > 1:
        hosts = ("ada",) * wanted.ranks
        out.append(ev.Ranks(t=t + 1, world=wanted.ranks, strategy="ddp", backend="gloo", hosts=hosts))
    out += [*_measured(wanted, 0, t + 2), ev.Eval(t=t + 2, step=0, loss=2.71), ev.Phase(t=t + 3, name="training")]
    t += 4
    for step in range(1, wanted.steps + 1):
        if step in STAGES:
            index, name = STAGES[step]
            out.append(ev.Stage(t=t, index=index, count=3, name=name, task="full", first_step=step - 1))
        t += wanted.step_seconds
        out.append(_step(wanted, step, t, noise))
        if step % 2 == 0:
            out.append(_meter(Golden(gpus=wanted.ranks), step, t))
        if step % wanted.every == 0:
            out += [ev.Eval(t=t, step=step, loss=_loss(step) + 0.05, seconds=0.4), *_measured(wanted, step, t)]
            out.append(ev.Memory(t=t, peak_bytes=int(1.35 * GIB), where="ram"))
            out.append(ev.Checkpoint(t=t, step=step, path=f"checkpoints/step-{step:08d}", size_bytes=41_900_000))
        if step == wanted.memory_at:
            out.append(memory_recovery(step, t))
        if step == wanted.recovery_at:
            out.append(spike_recovery(step, t))
            out += [_step(wanted, again, t, noise, again=True) for again in range(step - 17, step + 1)]
    if wanted.outcome:
        out += [ev.CardReady(t=t + 1), ev.End(t=t + 1, outcome=wanted.outcome, step=wanted.steps)]
    return out


def spike_recovery(step: int, t: float) -> ev.Recovery:
    """The loss leapt."""
    return ev.Recovery(
        t=t,
        step=step,
        trouble="loss spike",
        what=f"The loss was 9.812 at step {step}, 4.1 times the median of the last 32 steps.",
        back_to_step=max(step - 18, 0),
        remedy=f"The data of steps {step - 17} to {step} is passed over, and the learning rate is halved to 1.5e-04.",
    )


def memory_recovery(step: int, t: float) -> ev.Recovery:
    """There was no room."""
    return ev.Recovery(
        t=t,
        step=step,
        trouble="out of memory",
        what=f"Step {step} found no room for 402 MiB.",
        back_to_step=step,
        remedy="Micro-batches of 4 instead of 8 sequences, twice as many: the same step, less memory.",
    )


def retention_reports(step: int, total: int = 240) -> tuple[ev.RetentionReport, ...]:
    """One of each verdict."""
    lost = 0.13 * min(step / total, 1.0)
    return (
        _report("demo_facts", 0.882, 0.9, 0.03, "kept", "facts stayed at 90 % (88 % before)"),
        _report(
            "demo_arithmetic", 0.913, 0.913 - lost, 0.04, "lost" if lost > 0.05 else "unclear",
            f"arithmetic fell from 91 % to {round((0.913 - lost) * 100)} %, "
            + ("significant" if lost > 0.05 else "within what chance does"),
        ),
        ev.RetentionReport(
            on="general", unit="bits per byte", before=1.148, after=1.151, delta=0.003, low=-0.006, high=0.012,
            pairs=212, verdict="unclear", words="general went from 1.148 to 1.151 bits per byte, as chance does",
        ),
        ev.RetentionReport(
            on="code", unit="bits per byte", before=1.455, after=1.12, delta=-0.335, low=-0.36, high=-0.31, pairs=96,
            verdict="gained", words="code fell from 1.455 to 1.120 bits per byte, which is better, significant",
        ),
    )  # fmt: skip


def _report(on: str, before: float, after: float, spread: float, verdict: str, words: str) -> ev.RetentionReport:
    delta = after - before
    return ev.RetentionReport(
        on=on, unit="accuracy", before=before, after=after, delta=delta, low=delta - spread, high=delta + spread,
        pairs=150, verdict=verdict, words=words,
    )  # fmt: skip


def _measured(wanted: Continuation, step: int, t: float) -> list[ev.AnyEvent]:
    noise = random.Random(step)
    out: list[ev.AnyEvent] = []
    for name in wanted.suites:
        before, after, pace = SUITES[name]
        bits = after + (before - after) * math.exp(-step / pace) + (noise.gauss(0, 0.004) if step else 0.0)
        if name == "general":
            bits += 0.05 * math.exp(-((step - 40) ** 2) / 800) if step else 0.0
        nats = bits * math.log(2) * 3.1
        out.append(
            ev.SuiteScore(
                t=t, step=step, suite=name, nats_per_token=nats, bits_per_byte=bits, tokens=32_768, text_bytes=101_581
            )
        )
    if step % 40 == 0:
        for task, value in (("demo_facts", 0.882 + step * 1e-4), ("demo_arithmetic", 0.913 - 0.13 * step / 240)):
            questions = 300 if step == 0 else 100
            error = math.sqrt(value * (1 - value) / questions)
            out.append(
                ev.BenchmarkScore(
                    t=t, step=step, task=task, metric="exact_match", value=value, standard_error=error,
                    questions=questions, part=step > 0,
                )
            )  # fmt: skip
    if wanted.retention and step and step % 40 == 0:
        gate = wanted.gate if step + wanted.every >= wanted.steps else ""
        out.append(ev.Retention(t=t, step=step, reports=retention_reports(step, wanted.total_steps), gate=gate))
    return out


def _loss(step: int) -> float:
    return 1.62 + 1.1 * math.exp(-step / 30)


def _step(wanted: Continuation, step: int, t: float, noise: random.Random, *, again: bool = False) -> ev.Step:
    spiking = step == wanted.recovery_at and not again
    return ev.Step(
        t=t,
        step=step,
        loss=9.812 if spiking else _loss(step) + noise.gauss(0, 0.02),
        learning_rate=3e-4 * min(step / 12, 1.0),
        grad_norm=0.7 + noise.random() * 0.2,
        tokens=TOKENS_PER_STEP,
        trained_tokens=TOKENS_PER_STEP,
        step_seconds=wanted.step_seconds,
        wait_seconds=wanted.wait_seconds,
        domains={"web": 2867, "code": 1229},
        epoch=step / 700,
    )


def continuation_card(run_dir: Path, *, held: str = "") -> Card:
    """The card of such a run, its figures counted from its own journal."""
    found = list(JournalTail(run_dir).stream())
    fold = Fold()
    fold.apply_all(found)
    state = fold.state
    names = [name for name in SUITES if name in state.findings.suites]
    curves = [_followed(name, fold.state.findings.suites[name]) for name in names]
    after = state.step
    return Card(
        run_id=run_dir.name,
        name="court-rulings",
        task="full",
        model="demo",
        created=time.time(),
        before=_scores(0, 2.71),
        after=_scores(after, 1.68),
        samples=(),
        steps=state.step,
        tokens=state.tokens_total,
        trained_tokens=state.trained_tokens_total,
        training_seconds=314.0,
        working_seconds=341.0,
        cost_usd=0.04,
        adapter=Adapter(
            path="output/held/model" if held else "output/model", size_bytes=13_700_000, parameters=4_912_640,
            kind="model",
        ),
        loss_curve=tuple(CurvePoint(b.last_step, b.mean) for b in fold.series("loss").buckets()),
        eval_curve=tuple(CurvePoint(b.last_step, b.mean) for b in fold.series("eval_loss").buckets()),
        device="cpu, 2 threads",
        versions={"torch": "2.13.0"},
        retention=retention_reports(240),
        held=held,
        stages=(
            StageRetention(stage=1, name="short", step=60, suites=(), benchmarks=(), reports=retention_reports(40)),
            StageRetention(stage=2, name="wider", step=160, suites=(), benchmarks=(), reports=retention_reports(240)),
        ),
        curves=tuple(curves),
        stage_figures=stage_figures(found),
        recoveries=tuple(state.findings.recoveries),
        ranks=state.findings.ranks,
    )  # fmt: skip


def _followed(name: str, series: Series) -> FollowedCurve:
    points = tuple(CurvePoint(bucket.last_step, bucket.mean) for bucket in series.buckets())
    return FollowedCurve(name=name, unit="bits per byte", points=points)


def _scores(step: int, loss: float) -> Scores:
    events = _measured(Continuation(), step - step % 40, 0.0)
    return Scores(
        task_loss=loss,
        task_tokens=65_536,
        suites=tuple(
            SuiteResult(
                name=one.suite, nats_per_token=one.nats_per_token, bits_per_byte=one.bits_per_byte, tokens=one.tokens,
                text_bytes=one.text_bytes, documents=212,
            )
            for one in events
            if isinstance(one, ev.SuiteScore)
        ),
        benchmarks=tuple(
            BenchmarkResult(
                task=one.task, metric=one.metric, value=one.value, standard_error=one.standard_error, questions=300
            )
            for one in events
            if isinstance(one, ev.BenchmarkScore)
        ),
    )  # fmt: skip
