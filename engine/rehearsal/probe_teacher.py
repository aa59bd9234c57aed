"""The teacher of a job that is tried: the worker's own, in the form that the plan gives it.

Owns loading it once for all steps of a probe. Must not know gauges or clocks, nor who asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.distill.hidden import LayerEar
from engine.distill.knowledge import Knowledge
from engine.errors import EngineError
from engine.evaluation.model import LoadedModel
from engine.jobs.probes import ProbeRequest
from engine.jobs.spec import JobSpec
from engine.jobs.spec_distillation import Held
from engine.rehearsal.probe_job import Rows
from engine.train.environment import Device
from engine.train.found_teacher import FoundTeacher, read_teacher
from engine.train.held_teacher import knowledge_of, knowledge_of_own, load_teacher, taught_steps
from engine.train.taught_steps import TaughtSteps


@dataclass(frozen=True, slots=True)
class HeldTeacher:
    """Beside the student in memory."""

    found: FoundTeacher
    student: LoadedModel
    knows: tuple[Knowledge, LayerEar | None]

    def steps_of(self, spec: JobSpec) -> TaughtSteps:
        """What the trainer of these settings asks."""
        return taught_steps(spec, self.found, self.student, self.knows, tell=_ignore, warn=_ignore, look=_ignore)


def hold_teacher(request: ProbeRequest, student: LoadedModel, rows: Rows, device: Device) -> HeldTeacher | None:
    """None where the job has no teacher. Raises EngineError `distill.*`, `train.*`, `probe.no_rows`."""
    named, spec = request.teacher, request.spec
    if named is None:
        return None
    if not rows.real:
        raise EngineError(
            "probe.no_rows",
            "A job with a teacher is tried on its own rows, and they are not here.",
            next_step="Give the data file and the model's tokenizer, or leave --probe out: the formula counts the "
            "teacher.",
        )
    adapter = Path(named.adapter) if named.adapter else None
    found = read_teacher(spec, Path(request.folder), Path(named.folder), adapter, (rows.train, rows.heldout), _ignore)
    section = spec.distillation
    if found.is_own:
        return HeldTeacher(found, student, knowledge_of_own(section, found, student))
    teacher = load_teacher(found, Held(named.held), device, section, rows.tokenizer)
    return HeldTeacher(found, student, knowledge_of(section, found, student, teacher))


def _ignore(*_: object) -> None:
    """The run says it."""
