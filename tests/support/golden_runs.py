"""Writes run directories with believable journals, so that screens can be shown and tested without a worker.

A live run names this very process as its runner and worker, so that it is judged alive.
"""

from __future__ import annotations

import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

from engine.jobs import events as ev
from engine.jobs.card import (
    Adapter,
    Card,
    CurvePoint,
    MergeCheck,
    PredictedMeasured,
    SampleComparison,
    Scores,
)
from engine.jobs.journal import JournalWriter
from engine.jobs.layout import JOURNAL, RUNNER_JOURNAL
from engine.jobs.liveness import current_boot_id, process_start
from engine.jobs.spec import CostSection, JobSpec, PredictionSection
from engine.jobs.store import create_run

GIB = 1024**3
PROMPTS = (
    ("What do the people of Varn trade in spring?", "They trade salt and river glass."),
    ("Answer like a lighthouse keeper: is the harbour open?", "Aye, open till the third bell."),
    ("12 + 30 =", "42"),
)


@dataclass(frozen=True)
class Golden:
    """What the journal should say."""

    steps: int = 84
    total_steps: int = 120
    outcome: str = ""
    """ "" leaves the run live; else finished, stopped, paused, failed, killed."""
    gpus: int = 0
    usd_per_hour: float = 0.0
    samples: bool = True
    warnings: int = 1
    attempts: int = 1
    step_seconds: float = 0.62
    eval_every: int = 20
    name: str = "demo"
    control: str = ""
    seed: int = 5


def golden_spec(golden: Golden) -> JobSpec:
    """A spec with a prediction."""
    return JobSpec(
        name=golden.name,
        cost=CostSection(usd_per_hour=golden.usd_per_hour, budget_usd=5.0 if golden.usd_per_hour else 0.0),
        prediction=PredictionSection(
            memory_bytes_low=int(0.9 * GIB),
            memory_bytes_likely=int(1.1 * GIB),
            memory_bytes_high=int(1.4 * GIB),
            seconds_low=55,
            seconds_likely=80,
            seconds_high=130,
            tokens_per_second=1650.0,
            origin="formula",
            machine="this machine",
        ),
    )


def loss_at(step: int, noise: random.Random) -> float:
    """A curve as fine-tuning draws it: steep, then flat, a little noisy."""
    return 0.42 + 2.1 * math.exp(-step / 14) + 0.35 * math.exp(-step / 70) + noise.gauss(0, 0.03)


def write_golden(golden: Golden, *, now: float | None = None) -> Path:
    """Make the run directory; returns it."""
    run_dir = create_run(golden_spec(golden))
    now = time.time() if now is None else now
    began = now - 12 - golden.steps * golden.step_seconds
    _write_runner(run_dir, golden, began, now)
    with JournalWriter(run_dir / JOURNAL) as journal:
        for event in worker_events(golden, began):
            journal.write(event)
    return run_dir


def _write_runner(run_dir: Path, golden: Golden, began: float, now: float) -> None:
    pid, started = os.getpid(), process_start(os.getpid()) or 0.0
    with JournalWriter(run_dir / RUNNER_JOURNAL) as runner:
        runner.write(ev.RunnerStart(t=began - 0.5, pid=pid, process_start=started, boot_id=current_boot_id()))
        runner.write(ev.WorkerStart(t=began - 0.2, pid=pid, process_start=started, attempt=golden.attempts))
        runner.write(ev.Heartbeat(t=now))
        if golden.outcome == "killed":
            runner.write(
                ev.WorkerExit(
                    t=now,
                    exit_code=-9,
                    signal=9,
                    what="The worker was killed (signal 9).",
                    cause="The system ran out of memory: the kernel log names this process.",
                    next_step="Lower the batch size.",
                )
            )
        if golden.outcome:
            runner.write(ev.RunnerEnd(t=now, outcome=golden.outcome))


def worker_events(golden: Golden, began: float) -> list[ev.AnyEvent]:
    """What the worker would have written."""
    noise = random.Random(golden.seed)
    t = began
    out: list[ev.AnyEvent] = [
        ev.Start(t=t, attempt=golden.attempts, pid=os.getpid(), device="cpu, 2 threads"),
        ev.Phase(t=t, name="loading model", detail="demo in nf4"),
        ev.Plan(
            t=t + 1,
            total_steps=golden.total_steps,
            rows=384,
            tokens_per_epoch=24_000,
            trained_tokens_per_epoch=9_000,
            parameters=3_412_224,
            trainable_parameters=147_456,
        ),
        ev.Phase(t=t + 1, name="measuring before", detail="held-out rows", done=64, total=64),
    ]
    if golden.samples:
        out += [ev.Sample(t=t + 2, step=0, prompt=p, text="I do not know that.", expected=e) for p, e in PROMPTS]
    out.append(ev.Eval(t=t + 2, step=0, loss=2.91))
    out.append(ev.Phase(t=t + 3, name="training"))
    for index in range(golden.warnings):
        out.append(
            ev.Warn(
                t=t + 3 + index * 0.01, message="2 rows were cut at 256 tokens.", next_step="Raise data.max_length."
            )
        )
    t += 4
    for step in range(1, golden.steps + 1):
        t += golden.step_seconds
        out.append(_step(golden, step, t, noise))
        if step % 2 == 0:
            out.append(_meter(golden, step, t))
        if golden.eval_every and step % golden.eval_every == 0:
            out.append(ev.Eval(t=t, step=step, loss=loss_at(step, noise) + 0.11, seconds=0.4))
            if golden.samples:
                out += [
                    ev.Sample(
                        t=t, step=step, prompt=p, text=e if i != 1 else "Aye, open till the second bell.", expected=e
                    )
                    for i, (p, e) in enumerate(PROMPTS)
                ]
            out.append(ev.Memory(t=t, peak_bytes=int(1.22 * GIB), where="vram" if golden.gpus else "ram"))
        if step % 40 == 0:
            out.append(ev.Checkpoint(t=t, step=step, path=f"checkpoints/step-{step:08d}", size_bytes=1_900_000))
    if golden.control:
        out.append(ev.Control(t=t, command=golden.control))
    if golden.outcome in ("finished", "stopped"):
        out.append(ev.CardReady(t=t + 1))
    if golden.outcome == "failed":
        out.append(
            ev.End(
                t=t + 1,
                outcome="failed",
                step=golden.steps,
                what="The loss is not a number since step 84.",
                cause="The learning rate is too high for this data.",
                next_step="Resume with half the learning rate.",
            )
        )
    elif golden.outcome and golden.outcome != "killed":
        out.append(ev.End(t=t + 1, outcome=golden.outcome, step=golden.steps))
    return out


def _step(golden: Golden, step: int, t: float, noise: random.Random) -> ev.Step:
    return ev.Step(
        t=t,
        step=step,
        loss=loss_at(step, noise),
        learning_rate=2e-4 * (1 + math.cos(math.pi * step / max(golden.total_steps, 1))) / 2,
        grad_norm=0.8 + noise.random() * 0.2,
        tokens=1024,
        trained_tokens=410,
        step_seconds=golden.step_seconds * (0.98 + noise.random() * 0.04),
        epoch=step / 24,
    )


def _meter(golden: Golden, step: int, t: float) -> ev.Meter:
    gpus = tuple(
        ev.GpuMeter(
            index=index,
            used_bytes=int((19.2 + index * 0.3) * GIB),
            total_bytes=24 * GIB,
            utilization_percent=92.0 + index % 5,
            temperature_celsius=66.0 + index,
            power_watts=331.0 + index,
        )
        for index in range(golden.gpus)
    )
    return ev.Meter(
        t=t,
        cpu_percent=187.0 - step % 3,
        ram_bytes=int((1.16 + step * 0.0004) * GIB),
        ram_total_bytes=int(15.6 * GIB),
        gpus=gpus,
        temperature_celsius=61.0,
    )


def golden_card(run_dir: Path, *, merged: bool = False, forgot: bool = False) -> Card:
    """A finished card; `forgot` makes the base text clearly worse."""
    noise = random.Random(5)
    return Card(
        run_id=run_dir.name,
        name="demo",
        task="qlora",
        model="demo",
        created=time.time(),
        before=Scores(
            task_loss=2.91,
            task_tokens=3011,
            exact_match=0.03,
            exact_match_rows=64,
            base_perplexity=6.31,
            base_tokens=4096,
        ),
        after=Scores(
            task_loss=0.52,
            task_tokens=3011,
            exact_match=0.86,
            exact_match_rows=64,
            base_perplexity=9.8 if forgot else 6.52,
            base_tokens=4096,
        ),
        samples=tuple(
            SampleComparison(
                prompt=p,
                before="I do not know that.",
                after=e if i != 1 else "Aye, open till the second bell.",
                expected=e,
            )
            for i, (p, e) in enumerate(PROMPTS)
        ),
        steps=120,
        tokens=122_880,
        trained_tokens=49_200,
        training_seconds=74.0,
        working_seconds=96.0,
        cost_usd=0.0,
        adapter=Adapter(path="output/adapter", size_bytes=612_000, parameters=147_456),
        merged=MergeCheck(
            path="output/merged",
            size_bytes=7_200_000,
            max_logit_difference=0.08,
            mean_logit_difference=0.004,
            same_top_token=0.997,
            merged_task_loss=0.521,
            adapter_task_loss=0.52,
            base_dtype="nf4",
        )
        if merged
        else None,
        predicted=(
            PredictedMeasured(
                name="memory",
                unit="bytes",
                low=0.9 * GIB,
                likely=1.1 * GIB,
                high=1.4 * GIB,
                measured=1.22 * GIB,
                origin="formula",
            ),
            PredictedMeasured(name="time", unit="seconds", low=55, likely=80, high=130, measured=96, origin="formula"),
            PredictedMeasured(
                name="speed", unit="tokens/s", low=1200, likely=1650, high=2200, measured=1660, origin="formula"
            ),
        ),
        loss_curve=tuple(CurvePoint(step, loss_at(step, noise)) for step in range(1, 121)),
        eval_curve=tuple(CurvePoint(step, loss_at(step, noise) + 0.11) for step in range(0, 121, 20)),
        attempts=2,
        device="cpu, 2 threads",
        notes=("Held-out rows were never trained on.",),
    )
