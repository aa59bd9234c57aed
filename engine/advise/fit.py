"""From an approach to a job that fits: settings by recipe, then checkpointing and smaller micro-batches.

Owns that search. Must not know titles, reasons, hours or money.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from engine.advise.amounts import data_tokens
from engine.advise.answers import Answers
from engine.advise.approaches import Approach, TargetModel
from engine.advise.context import ContextChoice, answers_at_length, completed, impediment
from engine.advise.devices import (
    Devices,
    capability_of,
    compute_bytes,
    equal_devices,
    has_packing,
    single_device,
    workspace_bytes,
)
from engine.advise.grown import Grown
from engine.advise.longer import at_length, fit_window, joins, with_measured
from engine.advise.recipes import Recipe, choose_recipe
from engine.advise.targets import deeper, deeper_to, larger, wider
from engine.advise.taught import live_forms, teacher_shape, with_teacher
from engine.errors import EngineError
from engine.estimate.calibration import Calibration
from engine.estimate.estimate import Estimate, Verdict
from engine.estimate.memory import estimate_memory, memory_bounds
from engine.estimate.state import teacher_bytes
from engine.estimate.workload import (
    ALL_LINEAR,
    DeviceKind,
    Method,
    OptimizerKind,
    Packing4Bit,
    Purpose,
    TeacherHeld,
    Workload,
)
from engine.hardware.machine import Machine
from engine.jobs.spec_distillation import SELF, DistillationSection
from engine.models.architecture import Architecture
from engine.models.model_profiles import find_model_profile


@dataclass(frozen=True, slots=True)
class Plan:
    """One approach made concrete on one machine."""

    approach: Approach
    base: Architecture
    final: Architecture
    work: Workload
    devices: Devices
    recipe: Recipe
    bounds: tuple[float, float, float]
    """Memory low, likely, high on the device that trains."""
    calibration: Calibration | None = None
    """What this machine showed in probes and runs; None where nothing did, and on what-if machines."""
    context: ContextChoice | None = None
    """Of context scaling: length, method and window, all decided."""
    counts_tokens: bool = False
    """A step ends when it holds so many tokens, however many micro-batches that takes."""
    may_cache: bool = False
    """A teacher may leave its logits on disk instead of being asked."""
    impediment: str = ""
    """Why the approach is not for this model, in one sentence; "" when it is."""

    @property
    def memory_verdict(self) -> Verdict:
        """See `Devices.verdict`."""
        return self.devices.verdict(*self.bounds)


def plan_of(
    approach: Approach,
    architecture: Architecture,
    machine: Machine,
    answers: Answers,
    calibration: Calibration | None = None,
    grown: Grown | None = None,
    context: ContextChoice | None = None,
) -> Plan:
    """The gentlest settings of `approach` that fit; when nothing fits, the smallest job and its size.

    `grown` is the plan that was chosen for an expansion; without it a shape of about that size stands in. `context` is
    what was decided about a longer window.
    """
    if approach.longer:
        return _longer_plan(approach, architecture, machine, answers, calibration, context)
    if approach.teacher:
        return _taught_plan(approach, architecture, machine, answers, calibration)
    recipe = choose_recipe(answers, machine, architecture)
    devices = equal_devices(machine) if approach.shards else single_device(machine)
    final = grown.architecture if grown else final_architecture(approach, architecture, answers)
    first = _first_choice(approach, architecture, final, devices, recipe, answers)
    if grown:
        first = replace(first, method=grown.method, trained_layers=grown.added_layers)
    effective = recipe.whole("effective_batch")
    work, bounds = shrink_to_fit(first, devices.free_bytes, effective, calibration)
    return Plan(approach, architecture, final, work, devices, recipe, bounds, calibration)


def final_architecture(approach: Approach, architecture: Architecture, answers: Answers) -> Architecture:
    """What the approach ends with."""
    if approach.model is TargetModel.LARGER:
        return larger(architecture)
    asked = round(answers.number("target_parameters"))
    if approach.model is TargetModel.DEEPER:
        if asked > architecture.parameters:
            return deeper_to(architecture, min(asked, 8 * architecture.parameters))
        return deeper(architecture, approach.growth)
    if approach.model is TargetModel.WIDER:
        wanted = asked if asked > architecture.parameters else round(approach.growth * architecture.parameters)
        return wider(architecture, min(wanted, 64 * architecture.parameters))
    return architecture


def memory_bounds_on(work: Workload, calibration: Calibration | None) -> tuple[float, float, float]:
    """Bytes low, likely, high, corrected by what the machine showed."""
    return memory_bounds(work) if calibration is None else memory_bounds(work, calibration)


def estimate_memory_on(work: Workload, calibration: Calibration | None) -> Estimate:
    """The same with its breakdown."""
    return estimate_memory(work) if calibration is None else estimate_memory(work, calibration)


def calibration_for(machine: Machine) -> Calibration | None:
    """What probes and runs on this machine showed; None on a what-if machine."""
    if machine.simulated:
        return None
    from engine.advise.calibrated import calibration_of

    return calibration_of(machine)


def shrink_to_fit(
    first: Workload, free_bytes: float, effective_batch: int, calibration: Calibration | None = None
) -> tuple[Workload, tuple[float, float, float]]:
    """The first of: as given, with checkpointing, then half the micro-batch again and again, whose upper bound is free.

    The effective batch is kept by accumulating. When none fits, the smallest.
    """
    batch, tried = first.batch, first
    bounds = memory_bounds_on(first, calibration)
    while bounds[2] > free_bytes:
        if not tried.checkpointing:
            tried = replace(tried, checkpointing=True)
        elif batch > 1:
            batch //= 2
            tried = replace(tried, batch=batch, accumulation=max(effective_batch // batch, 1))
        else:
            break
        bounds = memory_bounds_on(tried, calibration)
    return tried, bounds


def training_length(architecture: Architecture, answers: Answers) -> int:
    """Tokens per sequence: what was asked, within the model's window."""
    asked = answers.context
    return min(asked, architecture.context_length or asked)


def _longer_plan(
    approach: Approach,
    architecture: Architecture,
    machine: Machine,
    answers: Answers,
    calibration: Calibration | None,
    given: ContextChoice | None,
) -> Plan:
    """The window that was asked for, trained in the gentlest way that fits; or measured only."""
    answers = answers_at_length(answers)
    recipe = choose_recipe(answers, machine, architecture, longer=True)
    devices, choice = single_device(machine), completed(given, architecture, answers)
    first = _first_choice(approach, architecture, architecture, devices, recipe, answers)
    joined = joins(choice.length, choice.window)
    first = replace(at_length(first, choice.length, joined=joined), checkpointing=True, train_norms=True)
    bounds = partial(memory_bounds_on, calibration=calibration)
    if not choice.train:
        work, measured = with_measured(
            measured_only(first), choice, architecture.context_length, devices.free_bytes, bounds
        )
        needed, choice = bounds(work), replace(choice, measured=measured)
    else:
        found = fit_window(
            first,
            choice,
            architecture.context_length,
            devices.free_bytes,
            bounds,
            data_tokens=data_tokens(answers)[1] * recipe.number("epochs"),
            may_pack=machine.simulated or machine.libraries.get("bitsandbytes", "unknown") is not None,
        )
        work, needed, choice = found.work, found.bounds, found.choice
    return Plan(
        approach,
        architecture,
        architecture,
        work,
        devices,
        recipe,
        needed,
        calibration,
        context=choice,
        counts_tokens=True,
        impediment=impediment(given, architecture, answers),
    )


def _taught_plan(
    approach: Approach, architecture: Architecture, machine: Machine, answers: Answers, calibration: Calibration | None
) -> Plan:
    """A teacher and its student on one card. What learns is, in this order, every weight, an adapter, an adapter on
    4-bit weights; the teacher is held whole, in 4 bits, or in host RAM: the first pair whose upper bound is free. Its
    own teacher is the model without its adapter: whole weights would take a second model."""
    recipe = choose_recipe(answers, machine, architecture, taught=True)
    devices, effective = single_device(machine), recipe.whole("effective_batch")
    teacher, impediment = teacher_asked(answers, architecture)
    first = partial(_first_choice, base=architecture, final=architecture, devices=devices, recipe=recipe)
    alone = answers.text("teacher") == SELF
    if alone:
        approach = approach.of_itself
    for packed, method in _LEARNS[1:] if alone else _LEARNS:
        kind = approach.optimizer if method is Method.FULL else OptimizerKind.ADAMW
        student = msgspec.structs.replace(approach, method=method, packed=packed, optimizer=kind)
        forms = (TeacherHeld.SHARED,) if alone else live_forms(devices)
        plain = with_teacher(first(student, answers=answers), teacher, forms[0])
        tried = _fitting_forms(plain, forms, devices.free_bytes, calibration)
        found = (shrink_to_fit(work, devices.free_bytes, effective, calibration) for work in tried)
        fitting = next((pair for pair in found if pair[1][2] <= devices.free_bytes), None)
        if fitting is not None:
            break
    smallest = replace(plain, teacher_held=forms[-1])
    work, bounds = fitting or shrink_to_fit(smallest, devices.free_bytes, effective, calibration)
    return Plan(
        approach,
        architecture,
        architecture,
        work,
        devices,
        recipe,
        bounds,
        calibration,
        may_cache=work.teacher_held is not TeacherHeld.SHARED,
        impediment=impediment,
    )


_LEARNS = ((False, Method.FULL), (False, Method.ADAPTER), (True, Method.ADAPTER))
"""From a teacher, in order of preference: on 4-bit weights or not, and what."""


def _fitting_forms(
    work: Workload, forms: Sequence[TeacherHeld], free_bytes: float, calibration: Calibration | None
) -> Iterator[Workload]:
    """Those with which the smallest micro-batch may fit, by the low end of one estimate: most pairs of student and
    teacher do not, and a teacher's weights are alive through all of a step."""
    least = replace(work, batch=1, checkpointing=True)
    spare = free_bytes - memory_bounds_on(least, calibration)[0] + teacher_bytes(least)
    for held in forms:
        if teacher_bytes(work, held) <= spare:
            yield work if held is work.teacher_held else replace(work, teacher_held=held)


def teacher_asked(answers: Answers, student: Architecture) -> tuple[Architecture, str]:
    """The teacher of the answers: named, or the next larger model of the student's series. The other is why there is
    none, in one sentence; a shape then stands in."""
    named = answers.text("teacher")
    try:
        if named:
            found = teacher_shape(DistillationSection(teacher=named), student)
            return found, "" if _same_size_of_vocabulary(student, found) else _other_tokens(student, found)
    except EngineError as error:
        return larger(student), error.what
    found = larger(student)
    if find_model_profile(found.name) is None or not _same_size_of_vocabulary(student, found):
        return found, f"No larger model with {student.name}'s tokenizer is known here: a teacher has to be named."
    return found, ""


def _same_size_of_vocabulary(one: Architecture, other: Architecture) -> bool:
    """But for padding and a few added tokens: a guess, which a start holds against the tokenizers themselves."""
    return abs(one.vocab_size - other.vocab_size) <= 0.01 * one.vocab_size


def _other_tokens(student: Architecture, teacher: Architecture) -> str:
    return (
        f"The teacher {teacher.name} has another tokenizer than {student.name}: {teacher.vocab_size:,} tokens, not "
        f'{student.vocab_size:,}. Only a spec with distillation.tokenizers = "uld" compares such a pair.'
    )


def measured_only(work: Workload) -> Workload:
    """The model at the new length with nothing that learns: one text, in chunks with a cache, logits where an answer
    stands."""
    return replace(
        work,
        purpose=Purpose.EVALUATE,
        batch=1,
        sequence=min(work.sequence, MEASURED_AT_ONCE),
        measured_tokens=work.sequence,
        accumulation=1,
        masked=False,
        targets=(),
        train_norms=False,
        trained_share=ANSWER_SHARE,
    )


MEASURED_AT_ONCE = 4096
"""Tokens per chunk that a measurement needs room for; it takes more where there is more."""
ANSWER_SHARE = 1 / 64
"""Of a measured text: the positions whose logits are wanted."""


def _first_choice(
    approach: Approach, base: Architecture, final: Architecture, devices: Devices, recipe: Recipe, answers: Answers
) -> Workload:
    effective = recipe.whole("effective_batch")
    adapter = approach.method is Method.ADAPTER
    batch = min(recipe.whole("batch_size"), effective)
    targets = recipe.names("targets") if adapter else ALL_LINEAR
    return Workload(
        architecture=final,
        method=approach.method,
        packing=Packing4Bit.NF4_DOUBLE if approach.packed else Packing4Bit.NONE,
        batch=batch,
        sequence=training_length(final, answers),
        rank=approach.rank or recipe.whole("rank"),
        targets=targets,
        checkpointing=recipe.flag("gradient_checkpointing") or not adapter,
        masked=recipe.flag("packing") and adapter,
        accumulation=max(effective // batch, 1),
        optimizer=OptimizerKind.ADAMW if devices.on_cpu and not adapter else approach.optimizer,
        trained_layers=final.layers - base.layers,
        compute_bytes=compute_bytes(devices),
        shards=max(len(devices.gpus), 1) if approach.shards else 1,
        device=DeviceKind.CPU if devices.on_cpu else DeviceKind.GPU,
        workspace_bytes=workspace_bytes(devices),
        capability=capability_of(devices),
    )


INSTALL_BITSANDBYTES = "Install it: pip install bitsandbytes. Or choose an approach without 4-bit weights."


def missing_library(plan: Plan, machine: Machine) -> str:
    """Why a plan cannot run for want of a library; "" when nothing is missing, or the machine is a what-if."""
    work = plan.work
    if has_packing(machine):
        return ""
    if work.packed:
        return "4-bit weights need bitsandbytes, which is not installed."
    if work.teacher is not None and work.teacher_held is TeacherHeld.PACKED:
        return "A teacher in 4 bits needs bitsandbytes, which is not installed."
    return ""
