"""The teacher of a job as the formulas see it: whose shape, where it is held, and what it may be.

Owns the rule for held = "auto", which the worker follows too. Must not know losses, nor how a spec was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from engine.advise.devices import Devices
from engine.errors import EngineError
from engine.estimate.calibration import Calibration
from engine.estimate.memory import memory_bounds
from engine.estimate.stacks import Stack
from engine.estimate.surroundings import CACHED_LOGITS, distilled_chunk_tokens
from engine.estimate.workload import Loss, Method, OwnAnswers, Packing4Bit, Purpose, TeacherHeld, Workload
from engine.jobs.spec import JobSpec
from engine.jobs.spec_distillation import SELF, DistillationSection, Held, Tokenizers
from engine.models.adapter import base_of_adapter, is_adapter
from engine.models.architecture import Architecture

HELD = {
    Held.RESIDENT: TeacherHeld.RESIDENT,
    Held.NF4: TeacherHeld.PACKED,
    Held.OFFLOADED: TeacherHeld.OFFLOADED,
    Held.CACHED: TeacherHeld.CACHED,
}
IN_SPECS = {held: name for name, held in HELD.items()}
"""How a spec names it."""


def teacher_shape(section: DistillationSection, student: Architecture) -> Architecture:
    """The teacher's shape; of an adapter its base's. "self" is `student`, the model as it was before the job.

    Raises EngineError `model.*`, `hub.*`, `adapter.*`, with the key.
    """
    if section.teacher == SELF:
        return student
    try:
        name = base_of(section.teacher)
        config = Path(name).expanduser() / "config.json"
        changed = config.stat().st_mtime_ns if config.is_file() else 0
        shape = _shape(name, section.teacher_revision, changed)
    except EngineError as error:
        raise EngineError(
            error.code,
            f"The teacher cannot be read: {error.what}",
            cause=error.cause,
            next_step=error.next_step,
            exit_code=error.exit_code,
            key="distillation.teacher",
        ) from error
    adapter = Path(section.teacher).expanduser()
    return replace(shape, name=f"{adapter.name} on {shape.name}") if is_adapter(adapter) else shape


@lru_cache(maxsize=32)
def _shape(name: str, revision: str, _changed: int) -> Architecture:
    from engine.models.analyze import analyze

    return analyze(name, revision=revision)


def base_of(teacher: str) -> str:
    """What holds the teacher's weights: its folder or id; of a folder with an adapter the base that it names. Raises
    EngineError `adapter.*`."""
    folder = Path(teacher).expanduser()
    return str(base_of_adapter(folder)) if is_adapter(folder) else teacher


def taught(
    spec: JobSpec, work: Workload, student: Architecture, devices: Devices, calibration: Calibration | None = None
) -> Workload:
    """`work` with the spec's teacher; `student` is the model before the job. Unchanged where there is none.

    Raises what `teacher_shape` raises.
    """
    section = spec.distillation
    if not section.distils or not spec.task.trains:
        return work
    shape = teacher_shape(section, student)
    if section.on_policy:
        own = OwnAnswers(section.on_policy, section.rollout_tokens, joined=spec.data.packing)
        work = replace(work, own_answers=own)
    if section.teacher == SELF and spec.task.trains_adapter:
        return with_teacher(work, shape, TeacherHeld.SHARED)
    top = (section.top_k or CACHED_LOGITS) if section.held is Held.CACHED else section.top_k
    top = min(top, work.architecture.vocab_size, shape.vocab_size)
    if section.held is not Held.AUTO:
        return with_teacher(work, shape, HELD[section.held], top)
    return with_teacher(work, shape, held_for(work, shape, devices, calibration), top)


def with_teacher(work: Workload, teacher: Architecture, held: TeacherHeld, top_k: int = 0) -> Workload:
    """The student's job with a teacher: its loss comes in chunks then, whatever it did before."""
    chunk = distilled_chunk_tokens(max(work.architecture.vocab_size, teacher.vocab_size))
    if work.loss is Loss.CHUNKED:
        chunk = min(chunk, work.stack.loss_chunk_tokens)
    stack = _in_chunks(work.stack, chunk)
    return replace(work, teacher=teacher, teacher_held=held, teacher_top_k=top_k, loss=Loss.CHUNKED, stack=stack)


@lru_cache(maxsize=64)
def _in_chunks(stack: Stack, tokens: int) -> Stack:
    return replace(stack, loss_chunk_tokens=tokens)


def held_for(
    work: Workload, teacher: Architecture, devices: Devices, calibration: Calibration | None = None
) -> TeacherHeld:
    """Where a teacher of that shape is held beside the student's job: whole where the card has room for both, else in 4
    bits, else in host RAM; whichever needs least where nothing fits. `work` is the job without a teacher."""
    found = {held: bounds_with(work, teacher, held, calibration) for held in live_forms(devices)}
    fitting = next((held for held, bounds in found.items() if bounds[2] <= devices.free_bytes), None)
    return fitting or min(found, key=lambda held: found[held][2])


def caching_form(
    work: Workload, teacher: Architecture, devices: Devices, calibration: Calibration | None = None
) -> TeacherHeld:
    """How a teacher that leaves its logits on disk is held while it does: alone on the device, in the truest form for
    which there is room. `work`: the student's job."""
    found = {}
    for held in live_forms(devices):
        asked = alone(work, teacher, held)
        bounds = memory_bounds(asked) if calibration is None else memory_bounds(asked, calibration)
        found[held] = bounds[2]
        if bounds[2] <= devices.free_bytes:
            return held
    return min(found, key=lambda held: found[held])


def alone(work: Workload, teacher: Architecture, held: TeacherHeld) -> Workload:
    """One pass of the teacher over rows, nothing beside it; from host RAM two of its layers are on the device."""
    asked = Workload(
        teacher,
        Method.ADAPTER,
        Packing4Bit.NF4_DOUBLE if held is TeacherHeld.PACKED else Packing4Bit.NONE,
        batch=1,
        sequence=work.sequence,
        purpose=Purpose.EVALUATE,
        targets=(),
        masked=True,
        compute_bytes=work.compute_bytes,
        device=work.device,
        workspace_bytes=work.workspace_bytes,
        capability=work.capability,
        loss=Loss.CHUNKED,
        stack=_in_chunks(work.stack, distilled_chunk_tokens(teacher.vocab_size)),
    )
    if held is not TeacherHeld.OFFLOADED:
        return asked
    layers = min(2, teacher.layers)
    return replace(asked, architecture=replace(teacher, layers=layers, parameters=_of_layers(teacher, layers)))


def _of_layers(teacher: Architecture, layers: int) -> int:
    each = (teacher.parameters - teacher.embedding_parameters) // max(teacher.layers, 1)
    return teacher.embedding_parameters + layers * each


def teacher_words(work: Workload) -> str:
    """ "teacher Qwen3-8B in 4 bits"; "" where there is none."""
    if work.teacher is None:
        return ""
    where = {
        TeacherHeld.RESIDENT: " beside it",
        TeacherHeld.PACKED: " in 4 bits",
        TeacherHeld.OFFLOADED: " in host RAM",
        TeacherHeld.CACHED: f", its {work.teacher_top_k or CACHED_LOGITS} likeliest tokens cached on disk",
    }
    held = where.get(work.teacher_held)
    return "taught by itself, adapter off" if held is None else f"teacher {work.teacher.name}{held}"


def live_forms(devices: Devices) -> Sequence[TeacherHeld]:
    """Forms of a teacher that can be asked anything, the truest and fastest first: 4 bits need their library, and a
    processor has no other memory to keep one in."""
    forms = [TeacherHeld.RESIDENT]
    if devices.packs:
        forms.append(TeacherHeld.PACKED)
    return forms if devices.on_cpu else [*forms, TeacherHeld.OFFLOADED]


def bounds_with(
    work: Workload, teacher: Architecture, held: TeacherHeld, calibration: Calibration | None = None
) -> tuple[float, float, float]:
    """Bytes low, likely, high."""
    asked = with_teacher(work, teacher, held)
    return memory_bounds(asked) if calibration is None else memory_bounds(asked, calibration)


def may_cache(spec: JobSpec) -> bool:
    """Whether the spec's teacher may leave its logits on disk instead."""
    section = spec.distillation
    asks = section.hidden_weight > 0 or section.on_policy > 0 or section.tokenizers is Tokenizers.ULD
    own = section.teacher == SELF and spec.task.trains_adapter
    return section.distils and not (asks or own or spec.streams)
