"""From a plan for a longer window to the sections of a spec that carry it out, and back.

Owns that translation. Must not know how a plan was found.
"""

from __future__ import annotations

import msgspec

from engine.advise.context import FULL, MIXED, POSE, ContextChoice
from engine.advise.fit import Plan
from engine.advise.longer import joins
from engine.estimate.workload import Loss
from engine.jobs.spec import ContextSection, DataSection, EvaluationSection, JobSpec, Task, TrainingSection

WARMUP_STEPS = 20
"""As LongLoRA and YaRN: with a few hundred steps a share would be too short, with thirty too long."""
MOST_WARMUP = 0.2


def context_spec(spec: JobSpec, plan: Plan, steps: int) -> JobSpec:
    """`spec` with its longer window: trained as the plan says, merged at the end; or extended and measured only.

    An adapter alone would leave the longer window to whoever loads it, therefore `output.merge`.
    """
    choice = plan.context
    assert choice is not None
    if not choice.train:
        return JobSpec(
            task=Task.EXTEND,
            name=spec.name,
            model=spec.model,
            data=DataSection(base_text=spec.data.base_text),
            context=ContextSection(length=choice.length, method=choice.method, factors=choice.factors),
            evaluation=EvaluationSection(lengths=choice.measured),
            cost=spec.cost,
            export=spec.export,
        )
    change, work = msgspec.structs.replace, plan.work
    return change(
        spec,
        data=change(spec.data, max_length=work.sequence, packing=joins(work.sequence, choice.window)),
        training=_training(spec.training, plan, steps),
        context=_section(choice, plan),
        evaluation=change(spec.evaluation, lengths=choice.measured),
        output=change(spec.output, merge=True),
    )


def _training(training: TrainingSection, plan: Plan, steps: int) -> TrainingSection:
    work = plan.work
    return msgspec.structs.replace(
        training,
        warmup_ratio=round(min(WARMUP_STEPS / max(steps, 1), MOST_WARMUP), 3),
        gradient_checkpointing=work.checkpointing,
        offload_activations=work.offload_activations,
        loss_chunk_tokens=work.stack.loss_chunk_tokens if work.loss is Loss.CHUNKED else 0,
        gradient_accumulation=1,
        tokens_per_step=work.tokens * work.accumulation,
    )


def _section(choice: ContextChoice, plan: Plan) -> ContextSection:
    short = {POSE: plan.work.sequence, MIXED: plan.base.context_length}.get(choice.window, 0)
    own = plan.base.context_length
    return ContextSection(
        length=choice.length,
        method=choice.method,
        factors=choice.factors,
        window=choice.window,
        curriculum=choice.curriculum if choice.window == FULL else (),
        train_length=0 if short == own else short,
        train_embeddings=plan.work.train_embeddings,
    )


def choice_of(spec: JobSpec) -> ContextChoice | None:
    """What a spec says about its window; None where it keeps the present one."""
    section = spec.context
    if not section.extends:
        return None
    return ContextChoice(
        length=section.length,
        method=section.method,
        window=section.window,
        train=spec.task is not Task.EXTEND,
        measured=spec.evaluation.lengths,
        curriculum=section.curriculum,
        factors=section.factors,
    )
