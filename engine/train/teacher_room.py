"""In which form a teacher fits beside its student, decided before either is loaded.

Owns asking the plan's own rule (`engine.advise.taught`) with what the worker knows of the machine. Must not know how a
form is loaded.
"""

from __future__ import annotations

from engine.advise.spec_growth import growth_of
from engine.advise.spec_plan import devices_of, workload_of
from engine.advise.taught import IN_SPECS, caching_form
from engine.estimate.workload import Workload
from engine.hardware.detect import detect
from engine.hardware.machine import Machine
from engine.jobs.spec_distillation import Held
from engine.models.analyze import analyze_model
from engine.models.source import ModelRef
from engine.train.attempt import Attempt
from engine.train.scoring import trained_on


def choose_held(attempt: Attempt, ref: ModelRef) -> Held:
    """The truest form for which there is room; whichever needs least where there is none. `ref`: the student."""
    return IN_SPECS[_work(attempt, ref, trained_on(detect(), attempt.device)).teacher_held]


def choose_caching(attempt: Attempt, ref: ModelRef) -> Held:
    """The same of a teacher that is alone, while its logits are written."""
    machine = trained_on(detect(), attempt.device)
    work = _work(attempt, ref, machine)
    assert work.teacher is not None
    return IN_SPECS[caching_form(work, work.teacher, devices_of(attempt.spec, machine))]


def _work(attempt: Attempt, ref: ModelRef, machine: Machine) -> Workload:
    architecture = analyze_model(ref)
    return workload_of(attempt.spec, architecture, machine, growth=growth_of(attempt.spec, ref, architecture))
