"""In which form a teacher fits beside its student, decided before either is loaded.

Owns asking the plan's own rule (`engine.advise.taught`) with what the worker knows of the machine. Must not know how a
form is loaded.
"""

from __future__ import annotations

from engine.advise.spec_growth import growth_of
from engine.advise.spec_plan import workload_of
from engine.advise.taught import IN_SPECS
from engine.hardware.detect import detect
from engine.jobs.spec_distillation import Held
from engine.models.analyze import analyze_model
from engine.models.source import ModelRef
from engine.train.attempt import Attempt
from engine.train.scoring import trained_on


def choose_held(attempt: Attempt, ref: ModelRef) -> Held:
    """The truest form for which there is room; whichever needs least where there is none. `ref`: the student."""
    architecture = analyze_model(ref)
    growth = growth_of(attempt.spec, ref, architecture)
    work = workload_of(attempt.spec, architecture, trained_on(detect(), attempt.device), growth=growth)
    return IN_SPECS[work.teacher_held]
