"""From a plan with a teacher to the spec that carries it out.

Owns that translation. Must not know what fits: the plan does.
"""

from __future__ import annotations

import msgspec

from engine.advise.answers import Answers
from engine.advise.fit import Plan
from engine.advise.taught import IN_SPECS
from engine.advise.text_spec import FULL_RATE
from engine.errors import EngineError
from engine.estimate.workload import Method, OptimizerKind, TeacherHeld
from engine.jobs.spec import DistillationSection, JobSpec, Optimizer, Task
from engine.jobs.spec_distillation import Held
from engine.models.model_profiles import find_model_profile

_EIGHT_BIT = (OptimizerKind.ADAMW_8BIT, OptimizerKind.PAGED_ADAMW_8BIT)


def taught_spec(spec: JobSpec, plan: Plan, answers: Answers) -> JobSpec:
    """The spec with its teacher, held as the plan found room for it; whole weights move a tenth as far as an adapter's
    would."""
    change, work, recipe = msgspec.structs.replace, plan.work, plan.recipe
    shared = work.teacher_held is TeacherHeld.SHARED
    plain = DistillationSection()
    spec = change(
        spec,
        distillation=DistillationSection(
            teacher=_name(plan, answers),
            held=Held.AUTO if shared else IN_SPECS[work.teacher_held],
            temperature=recipe.number_or("temperature", plain.temperature),
            ce_weight=recipe.number_or("ce_weight", plain.ce_weight),
        ),
    )
    if work.method is Method.ADAPTER:
        return spec
    training = change(
        spec.training,
        learning_rate=spec.training.learning_rate * FULL_RATE,
        optimizer=Optimizer.ADAMW_8BIT if work.optimizer in _EIGHT_BIT else Optimizer.ADAMW,
    )
    return change(spec, task=Task.FULL, output=change(spec.output, merge=False), training=training)


def _name(plan: Plan, answers: Answers) -> str:
    """As it was answered; of the next larger model its hub id."""
    named = answers.text("teacher")
    if named:
        return named
    assert plan.work.teacher is not None
    profile = find_model_profile(plan.work.teacher.name)
    return profile.hub_id if profile is not None else plan.work.teacher.source


def no_teacher(impediment: str) -> EngineError:
    """The refusal where nobody can teach."""
    return EngineError(
        "plan.no_teacher",
        impediment,
        next_step='Name one: --teacher with a folder or a hub id, or "self"; or choose lora or qlora.',
    )
