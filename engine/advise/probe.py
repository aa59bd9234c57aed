"""The probe as the wizard asks for it: launch it, keep what it measured, and turn it into figures for the job.

Owns the choice between the model's own weights and a few random layers, the process, and the estimates that follow.
Must not know torch: measuring is `engine.rehearsal.probe`'s.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import msgspec

from engine.advise.amounts import device_of
from engine.advise.calibrated import RESIDENT_CREEP, evidence_of, spread
from engine.advise.devices import single_device
from engine.advise.spec_plan import plan_of_spec, with_plain_steps, workload_of
from engine.advise.taught import IN_SPECS, base_of
from engine.errors import EngineError, ExitCode
from engine.estimate.calibration import Calibration
from engine.estimate.cards import DeviceSpeed
from engine.estimate.estimate import Estimate, Origin, Part, Range
from engine.estimate.memory import allocated_bytes, estimate_memory, memory_bounds
from engine.estimate.rehearsal import rehearsal_of
from engine.estimate.speed import estimate_tokens_per_second, step_bounds
from engine.estimate.workload import DeviceKind, TeacherHeld, Workload
from engine.hardware.identity import identity_of
from engine.hardware.machine import Machine
from engine.jobs.launch import child_environment, module_command
from engine.jobs.probes import (
    FormulaFigures,
    ProbeAnswer,
    ProbeRecord,
    ProbeReply,
    ProbeRequest,
    ProbeTeacher,
    Shape,
    store_probe,
)
from engine.jobs.spec import JobSpec
from engine.jobs.spec_distillation import SELF, Held
from engine.jobs.spec_toml import spec_hash
from engine.models.adapter import is_adapter
from engine.models.architecture import Architecture
from engine.models.config import text_part
from engine.models.resolve import require_weights, resolve_model
from engine.models.source import ModelRef

PROGRESS = "probe: "
LOAD_BYTES_PER_SECOND = 0.25e9
"""From disk to the device, packed on the way."""
LOAD_SHARE = 0.4
"""Of the budget; a model that takes longer to load is tried in part."""
FEWEST_MICRO_STEPS = 10
"""Warm-up, timed steps and half the length: what a probe does at least."""
PATIENCE = 6.0
"""A probe that takes so many budgets is given up; minimum steps of a slow machine may exceed the budget."""
LEAST_PATIENCE_SECONDS = 180.0
MEMORY_SPREAD = 0.04
PARTIAL_MEMORY_SPREAD = 0.06
"""Half width of what was carried on from a few layers."""
SPEED_SPREAD = 0.07
"""Half width of the speed of one job on one machine, at least: what a minute shows of the next hour."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the probe says about the job."""

    memory: Estimate
    tokens_per_second: Estimate
    record: ProbeRecord
    calibration: Calibration | None
    """What is in force on this machine from now on."""
    own: Calibration | None
    """Corrections under which the formula gives what was measured of this very job."""


def probe(
    spec: JobSpec,
    architecture: Architecture,
    ref: ModelRef,
    machine: Machine,
    *,
    budget_seconds: float = 45.0,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
    memory_cap_bytes: int = 0,
) -> ProbeReport:
    """Measure the job on this machine, unless it was measured before with the same libraries and not `force`.

    Raises EngineError `probe.*`, `train.*`, `data.*`, `rehearsal.*`.
    """
    known = evidence_of(machine).probes
    job = spec_hash(spec)
    record = next((record for record in known if record.job == job), None)
    if record is None or force:
        record = _measure(spec, architecture, ref, machine, budget_seconds, memory_cap_bytes, progress)
        store_probe(record)
    return _report(record, spec, architecture, machine)


# ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _measure(
    spec: JobSpec,
    architecture: Architecture,
    ref: ModelRef,
    machine: Machine,
    budget_seconds: float,
    memory_cap_bytes: int,
    progress: Callable[[str], None] | None,
) -> ProbeRecord:
    work = workload_of(spec, architecture, machine)
    device = device_of(plan_of_spec(spec, architecture, machine), machine)
    config, _ = text_part(dict(ref.config))
    depths = () if _whole(work, ref, machine, device, budget_seconds) else _depths(config, architecture.layers)
    teacher = _teacher(spec, ref, work)
    if teacher is not None and depths:
        raise _unsupported("The model is too large to be tried whole in that time, and a part of it has no teacher.")
    if depths:
        _require_room(work, depths, machine, device, budget_seconds)
    one_more = replace(work, batch=work.batch + 1)
    request = ProbeRequest(
        spec=with_plain_steps(spec, work),
        rehearsal=rehearsal_of(work, config),
        folder=str(ref.path.absolute()) if ref.path is not None else "",
        teacher=teacher,
        real_weights=not depths,
        depths=depths,
        layers=architecture.layers,
        budget_seconds=budget_seconds,
        memory_cap_bytes=memory_cap_bytes,
        bytes_per_token=max(allocated_bytes(one_more) - allocated_bytes(work), 0.0) / work.sequence,
    )
    answer = _ask(request, progress)
    return ProbeRecord(
        machine=identity_of(machine),
        t=time.time(),
        model=architecture.name,
        job=spec_hash(spec),
        answer=answer,
        formula=tuple(_formula(shape, work, device) for shape in answer.shapes),
    )


def _teacher(spec: JobSpec, ref: ModelRef, work: Workload) -> ProbeTeacher | None:
    """Who teaches, and in which form; None where nobody does. Raises EngineError `probe.unsupported`, `model.*`."""
    section = spec.distillation
    if not section.distils:
        return None
    if work.teacher_held is TeacherHeld.CACHED:
        raise _unsupported("A probe does not write a teacher's logits to disk, and this job reads them there.")
    if section.on_policy:
        raise _unsupported("How long the student's own answers take cannot be seen in a minute of them.")
    held = IN_SPECS.get(work.teacher_held, Held.RESIDENT).value
    if section.teacher == SELF:
        return ProbeTeacher(folder=str(ref.path), held=held)
    named = Path(section.teacher).expanduser()
    model = resolve_model(base_of(section.teacher), revision=section.teacher_revision)
    return ProbeTeacher(
        folder=str(require_weights(model).absolute()),
        adapter=str(named.absolute()) if is_adapter(named) else "",
        held=held,
    )


def _unsupported(why: str) -> EngineError:
    return EngineError(
        "probe.unsupported",
        why,
        next_step="Leave --probe out: the formula counts the teacher.",
        key="distillation.teacher",
    )


def _whole(work: Workload, ref: ModelRef, machine: Machine, device: DeviceSpeed, budget_seconds: float) -> bool:
    """Whether the model's own weights can be loaded, fit, and step often enough within the budget."""
    if ref.path is None or not ref.has_weights:
        return False
    loaded = [work.architecture]
    if work.teacher is not None and work.teacher_held is not TeacherHeld.SHARED:
        loaded.append(work.teacher)
    stored = float(sum(one.weight_bytes or 2 * one.parameters for one in loaded))
    if stored / LOAD_BYTES_PER_SECOND > LOAD_SHARE * budget_seconds:
        return False
    if step_bounds(work, device)[1] * FEWEST_MICRO_STEPS > budget_seconds:
        return False
    return work.device is DeviceKind.GPU or memory_bounds(work)[1] <= single_device(machine).free_bytes


def _depths(config: dict[str, Any], layers: int) -> tuple[int, ...]:
    """One and two periods of the layer pattern, two layers at least; the whole model when it is no deeper."""
    period = max(_period(value) for value in (*config.values(), None) if value is None or _per_layer(value, layers))
    shallow = max(period, 2)
    deep = 2 * shallow
    return (layers,) if deep >= layers else (shallow, deep)


def _per_layer(value: Any, layers: int) -> bool:
    return isinstance(value, list) and len(value) == layers


def _period(pattern: list[Any] | None) -> int:
    """Length of the shortest repeated piece; 1 without a list."""
    if not pattern:
        return 1
    for length in range(1, len(pattern)):
        if all(value == pattern[index % length] for index, value in enumerate(pattern)):
            return length
    return len(pattern)


def cut(architecture: Architecture, layers: int) -> Architecture:
    """The same model with fewer layers."""
    share = layers / architecture.layers
    moe = architecture.moe
    shorter = replace(
        architecture,
        layers=layers,
        sliding_layers=round(architecture.sliding_layers * share),
        moe=None if moe is None else replace(moe, moe_layers=round(moe.moe_layers * share)),
    )
    parameters = architecture.parameters - architecture.linear_parameters + shorter.linear_parameters
    return replace(shorter, parameters=parameters, weight_bytes=2 * parameters)


def _require_room(
    work: Workload, depths: tuple[int, ...], machine: Machine, device: DeviceSpeed, budget_seconds: float
) -> None:
    """Raises EngineError `probe.*` where even a few layers would drive a CPU machine into swap, or take long."""
    part = replace(work, architecture=cut(work.architecture, depths[-1]))
    devices = single_device(machine)
    needed, seconds = memory_bounds(part)[2], step_bounds(part, device)[1] * FEWEST_MICRO_STEPS * len(depths)
    if work.device is DeviceKind.CPU and needed > devices.free_bytes:
        raise EngineError(
            "probe.too_large",
            f"Even {depths[-1]} layers of this job may not fit the memory that is free.",
            next_step="Shorten the sequence or the micro-batch, or use --dry-run, which needs no memory.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )
    if seconds > PATIENCE * budget_seconds:
        raise EngineError(
            "probe.too_slow",
            f"A few steps of this job would take about {seconds / 60:.0f} minutes here.",
            next_step="Use --dry-run for the memory; the formula's speed stands.",
            exit_code=ExitCode.DOES_NOT_FIT,
        )


def _ask(request: ProbeRequest, progress: Callable[[str], None] | None) -> ProbeAnswer:
    """Run the process to its end."""
    child = subprocess.Popen(
        module_command("engine.rehearsal.probe"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    last: list[str] = []
    listener = threading.Thread(target=_listen, args=(child.stderr, progress, last), daemon=True)
    listener.start()
    limit = max(PATIENCE * request.budget_seconds, LEAST_PATIENCE_SECONDS)
    watchdog = threading.Timer(limit, child.kill)
    watchdog.start()
    try:
        child.stdin.write(msgspec.json.encode(request))
        child.stdin.close()
        content = child.stdout.read()
        child.wait()
    except BrokenPipeError:
        content = b""
        child.wait()
    finally:
        watchdog.cancel()
        if child.poll() is None:
            child.kill()
            child.wait()
        listener.join(timeout=5.0)
        for stream in (child.stdout, child.stderr):
            stream.close()
    try:
        reply = msgspec.json.decode(content, type=ProbeReply)
    except msgspec.MsgspecError as error:
        raise _died(child.returncode, last) from error
    if reply.answer is not None:
        return reply.answer
    assert reply.error is not None
    failed = reply.error
    raise EngineError(
        failed.code, failed.what, cause=failed.cause, next_step=failed.next_step, exit_code=ExitCode.RUN_FAILED
    )


def _listen(stream: IO[bytes], progress: Callable[[str], None] | None, last: list[str]) -> None:
    for line in stream:
        text = line.decode(errors="replace").rstrip()
        if not text.startswith(PROGRESS):
            last[:] = [*last[-20:], text]
        elif progress is not None:
            progress(text.removeprefix(PROGRESS))


def _died(code: int, last: list[str]) -> EngineError:
    cause = next((line.strip() for line in reversed(last) if line.strip()), "")[:300]
    if code < 0:
        cause = f"It was ended by signal {-code}; 9 is the kernel short of memory, or a probe that took too long."
    return EngineError(
        "probe.died",
        "The probe ended without an answer.",
        cause=cause,
        next_step="The formula's estimate stands; --dry-run needs no memory.",
        exit_code=ExitCode.RUN_FAILED,
    )


# ── concluding ────────────────────────────────────────────────────────────────────────────────────────────────────
def _formula(shape: Shape, work: Workload, device: DeviceSpeed) -> FormulaFigures:
    """The formula without any correction, for the very shape that was measured."""
    seen = _at(shape, work)
    fill = Range(shape.padding_free, shape.padding_free, shape.padding_free)
    return FormulaFigures(
        allocated_bytes=allocated_bytes(seen),
        tokens_per_second=estimate_tokens_per_second(seen, device, fill=fill).likely,
    )


def _at(shape: Shape, work: Workload) -> Workload:
    return replace(
        work, batch=shape.batch, sequence=max(shape.sequence, 1), trained_share=max(shape.trained_share, 1e-3)
    )


def _report(record: ProbeRecord, spec: JobSpec, architecture: Architecture, machine: Machine) -> ProbeReport:
    work = workload_of(spec, architecture, machine)
    calibration = evidence_of(machine).calibration
    shapes = record.answer.shapes
    own = next((shape for shape in shapes[:1] if shape.process_bytes > 0), None)
    if own is None:  # the job itself did not fit: what was learnt from a smaller one
        memory = estimate_memory(work, calibration)
        return ProbeReport(memory, _speed(record, shapes[0]) if shapes else _no_speed(), record, calibration, None)
    speed = _speed(record, own)
    exact = _own_calibration(record, own, speed)
    return ProbeReport(estimate_memory(_at(own, work), exact), speed, record, calibration, exact)


def _own_calibration(record: ProbeRecord, own: Shape, speed: Estimate) -> Calibration:
    """Corrections under which the formula gives this job's own measured bytes."""
    answer, formula = record.answer, record.formula[0]
    partial = bool(answer.depths)
    least = PARTIAL_MEMORY_SPREAD if partial else MEMORY_SPREAD
    day = time.strftime("%Y-%m-%d", time.gmtime(record.t))
    source = f"this job measured on {day} on {record.machine.words}"
    context: Range | None = spread([answer.context_bytes], least)
    over: Range | None
    if answer.on_cpu or not own.allocated_bytes:
        whole = RESIDENT_CREEP * own.process_bytes
        context = Range(answer.context_bytes, answer.context_bytes, answer.context_bytes)
        low, likely, high = (
            (whole * share - answer.context_bytes) / formula.allocated_bytes for share in (1 - least, 1.0, 1 + least)
        )
        over, factor = Range(low, likely, high), None
    else:
        over = spread([own.reserved_bytes / own.allocated_bytes], least / 2)
        factor = spread([own.allocated_bytes / formula.allocated_bytes], least / 2)
    assert over is not None
    slack = Range(over.low - 1, over.likely - 1, over.high - 1)
    alone = formula.tokens_per_second
    speed_factor = Range(speed.low / alone, speed.likely / alone, speed.high / alone) if alone > 0 else None
    return Calibration(Origin.PROBE, source, context, slack, factor, speed_factor)


def _speed(record: ProbeRecord, own: Shape) -> Estimate:
    likely = own.tokens_per_second
    low = min(own.tokens_per_second_low, likely * (1 - SPEED_SPREAD))
    high = max(own.tokens_per_second_high, likely * (1 + SPEED_SPREAD))
    text = f"{own.steps} steps of {own.batch} x {own.sequence:,} tokens"
    part = Part("tokens per second", likely, text, f"measured on {record.machine.words}")
    return Estimate(low, likely, high, "tokens/s", Origin.PROBE, (part,))


def _no_speed() -> Estimate:
    return Estimate(0.0, 0.0, 0.0, "tokens/s", Origin.PROBE)
