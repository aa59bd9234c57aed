"""A run's line in the book of scores: what was predicted, what was measured, what the formula alone would have said.

Owns filling in that line. Must not fail a run: whatever goes wrong here goes to the worker's log. Must not know the
loop.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

from engine.advise.amounts import device_of
from engine.advise.calibrated import calibration_of
from engine.advise.spec_growth import growth_of
from engine.advise.spec_plan import plan_of_spec, workload_of
from engine.estimate.calibration import Calibration
from engine.estimate.cards import DeviceSpeed
from engine.estimate.estimate import Range
from engine.estimate.memory import allocated_bytes
from engine.estimate.process import slack_of
from engine.estimate.speed import estimate_tokens_per_second
from engine.estimate.workload import DeviceKind, Workload
from engine.hardware.detect import detect
from engine.hardware.identity import identity_of
from engine.hardware.machine import Machine
from engine.jobs import events as ev
from engine.jobs.journal import JournalTail
from engine.jobs.scores import Promise, Score, append_score
from engine.jobs.spec import JobSpec
from engine.models.analyze import analyze_model
from engine.models.resolve import resolve_model
from engine.train.environment import Device
from engine.train.meters import Peak, peak_of

SCORED = ("finished", "stopped", "out of memory")
WARM_UP_STEPS = 2
"""Of each attempt; left out of the measured speed."""
_NOTHING = Range(1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Trained:
    """What the journal says of the steps of the last attempt, and of the data."""

    attempts: int
    steps: int
    tokens: int
    seconds: float
    trained_share: float
    tokens_per_step: float
    rows_per_epoch: int
    tokens_per_epoch: int

    @property
    def tokens_per_second(self) -> float:
        """0 without a timed step."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def record_score(run_dir: Path, spec: JobSpec, device: Device, outcome: str, working_seconds: float) -> None:
    """Append the line of a run that has ended, in an outcome of SCORED; never raises."""
    if outcome not in SCORED:
        return
    try:
        append_score(score_of(run_dir, spec, device, outcome, working_seconds))
    except Exception:  # a figure for later is no reason to lose a run
        traceback.print_exc()


def score_of(run_dir: Path, spec: JobSpec, device: Device, outcome: str, working_seconds: float) -> Score:
    """The line, from the journal, the process as it is now, and the formula."""
    trained, peak = trained_of(run_dir), peak_of(device.torch_device)
    machine = trained_on(detect(), device)
    ref = resolve_model(spec.model.source, revision=spec.model.revision, offline=True)
    architecture = analyze_model(ref)
    growth = growth_of(spec, ref, architecture)
    work = workload_of(spec, architecture, machine, trained_share=trained.trained_share, growth=growth)
    formula = allocated_bytes(work)
    calibration = calibration_of(machine)
    promised = spec.prediction
    on_card = work.device is DeviceKind.GPU
    allocated, reserved = _promised_allocator(formula, work, calibration, peak) if on_card else (Promise(), Promise())
    finished = outcome == "finished"
    return Score(
        run_id=run_dir.name,
        t=time.time(),
        machine=identity_of(machine, device=device.name),
        outcome=outcome,
        model=architecture.name,
        workload=workload_words(spec, work),
        origin=promised.origin,
        on_cpu=not on_card,
        allocated=allocated,
        reserved=reserved,
        process=Promise(
            low=promised.memory_bytes_low,
            likely=promised.memory_bytes_likely,
            high=promised.memory_bytes_high,
            measured=peak.process_bytes,
        ),
        tokens_per_second=Promise(
            low=promised.tokens_per_second_low or promised.tokens_per_second,
            likely=promised.tokens_per_second,
            high=promised.tokens_per_second_high or promised.tokens_per_second,
            measured=trained.tokens_per_second,
        ),
        seconds=Promise(
            low=promised.seconds_low,
            likely=promised.seconds_likely,
            high=promised.seconds_high,
            measured=working_seconds if finished else 0.0,
        ),
        context_bytes=peak.context_bytes,
        formula_allocated_bytes=formula,
        formula_tokens_per_second=_formula_speed(
            spec, work, device_of(plan_of_spec(spec, architecture, machine, growth=growth), machine), trained
        ),
        steps=trained.steps,
    )


def trained_of(run_dir: Path) -> Trained:
    """Steps of the newest attempt, warm-up left out where there are more; counts of the data."""
    steps: list[ev.Step] = []
    plan: ev.Plan | None = None
    attempts = 0
    for event in JournalTail(run_dir).stream():
        if isinstance(event, ev.Start):
            steps, attempts = [], attempts + 1
        elif isinstance(event, ev.Plan):
            plan = event
        elif isinstance(event, ev.Step):
            steps.append(event)
    timed = steps[WARM_UP_STEPS:] or steps
    tokens = sum(step.tokens for step in timed)
    share = plan.trained_tokens_per_epoch / plan.tokens_per_epoch if plan and plan.tokens_per_epoch else 1.0
    return Trained(
        attempts=attempts,
        steps=len(timed),
        tokens=tokens,
        seconds=sum(step.step_seconds for step in timed),
        trained_share=min(max(share, 1e-3), 1.0),
        tokens_per_step=tokens / len(timed) if timed else 0.0,
        rows_per_epoch=plan.rows if plan else 0,
        tokens_per_epoch=plan.tokens_per_epoch if plan else 0,
    )


def workload_words(spec: JobSpec, work: Workload) -> str:
    """ "qlora, 4 x 256 tokens, rank 16"; with the length that trains, which for PoSE is not data.max_length."""
    rank = f", rank {spec.adapter.rank}" if spec.task.trains_adapter else ""
    window = f", {spec.context.window} window" if spec.context.window != "full" else ""
    return f"{spec.task.value}, {spec.training.batch_size} x {work.sequence:,} tokens{rank}{window}"


def trained_on(machine: Machine, device: Device) -> Machine:
    """The machine with the card that was used alone; with none when the run computed on the processor."""
    if not device.is_cuda:
        return replace(machine, gpus=())
    used = tuple(gpu for gpu in machine.gpus if gpu.name == device.name)[:1]
    return replace(machine, gpus=used or machine.gpus[:1])


def _promised_allocator(
    formula: float, work: Workload, calibration: Calibration | None, peak: Peak
) -> tuple[Promise, Promise]:
    """What was expected of the allocator under the corrections in force, beside what it did."""
    factor = (calibration.allocated_factor if calibration else None) or _NOTHING
    slack = slack_of(work, calibration)
    allocated = Range(formula * factor.low, formula * factor.likely, formula * factor.high)
    return (
        Promise(low=allocated.low, likely=allocated.likely, high=allocated.high, measured=peak.allocated_bytes),
        Promise(
            low=allocated.low * (1 + slack.low),
            likely=allocated.likely * (1 + slack.likely),
            high=allocated.high * (1 + slack.high),
            measured=peak.reserved_bytes,
        ),
    )


def _formula_speed(spec: JobSpec, work: Workload, device: DeviceSpeed, trained: Trained) -> float:
    """Tokens per second by the formula alone. Rows that are not packed count at their mean length."""
    computed = work.tokens * work.accumulation
    if spec.data.packing:
        share = min(trained.tokens_per_step / computed, 1.0) if trained.tokens_per_step else 1.0
        return estimate_tokens_per_second(work, device, fill=Range(share, share, share)).likely
    mean = round(trained.tokens_per_epoch / trained.rows_per_epoch) if trained.rows_per_epoch else 0
    return estimate_tokens_per_second(work, device, width=max(mean, 1)).likely
