"""From answers to a frozen spec: the approach with settings that fit, and the promise the run is held to.

Owns the translation into `JobSpec`. Must not know how a spec is stored or run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import msgspec

from engine.advise.amounts import data_tokens, device_of, load_of
from engine.advise.answers import Answers
from engine.advise.appraisal import Appraisal, appraise
from engine.advise.approaches import TargetModel, find_approach
from engine.advise.compare import runs_here
from engine.advise.context import DEMO, DEMO_DOCUMENTS, FULL, ContextChoice, answers_at_length
from engine.advise.context_spec import context_spec
from engine.advise.fit import INSTALL_BITSANDBYTES, Plan, calibration_for, missing_library, plan_of
from engine.advise.grown import Grown, expansion_section
from engine.advise.recipes import Recipe
from engine.advise.refusal import context_refusal, refusal_of
from engine.advise.spec_plan import predict, prediction_of, workload_of
from engine.advise.taught_spec import no_teacher, taught_spec
from engine.advise.text_spec import FULL_RATE, text_spec
from engine.errors import EngineError
from engine.estimate.cost import Tariff, hourly_rent
from engine.estimate.estimate import Verdict
from engine.estimate.workload import OptimizerKind, Workload
from engine.hardware.machine import Machine
from engine.jobs.spec import (
    AdapterSection,
    CheckpointSection,
    CostSection,
    DataSection,
    EvaluationSection,
    ExportSection,
    JobSpec,
    ModelSection,
    Optimizer,
    OutputSection,
    Schedule,
    SourceSection,
    Task,
    TrainingSection,
)
from engine.models.architecture import Architecture
from engine.models.model_profiles import find_model_profile

__all__ = ["JobWish", "build_spec", "draft_spec", "grown_spec", "predict", "workload_of"]

NEW_RATE = 0.4
"""Of an adapter's learning rate, for parameters that growth added: more than old ones, they know nothing yet."""
NEW_WARMUP = 0.1
"""Share of the steps in which new parameters warm up, as after a restart (SPARKLING, arXiv 2602.02472)."""
_OPTIMIZERS = {
    OptimizerKind.ADAMW: Optimizer.ADAMW,
    OptimizerKind.ADAMW_8BIT: Optimizer.ADAMW_8BIT,
    OptimizerKind.PAGED_ADAMW_8BIT: Optimizer.PAGED_ADAMW_8BIT,
    OptimizerKind.ADAMW_MIXED: Optimizer.ADAMW,
}
PACKED_FILL = 0.92
"""How full packed sequences are on short rows."""


@dataclass(frozen=True, slots=True)
class JobWish:
    """What the user sets beside the answers; empty means from the answers."""

    train: str = ""
    name: str = ""
    force: bool = False
    """Make the spec although the estimate says it does not fit."""
    grown: Grown | None = None
    """The plan chosen for an expansion; needed by approaches that grow."""
    context: ContextChoice | None = None
    """What was decided about a longer window; None leaves all of it to the program."""
    sources: tuple[SourceSection, ...] = ()
    """Of large text, where the answer about data is that."""


def build_spec(
    architecture: Architecture, machine: Machine, answers: Answers, *, approach: str, wish: JobWish | None = None
) -> JobSpec:
    """The spec of `approach`, prediction filled in.

    Raises EngineError `plan.does_not_fit` (exit code 4) with the cheapest fixes, or `approach.*` when it cannot run.
    """
    chosen, wish = find_approach(approach), _on_text(wish or JobWish(), answers)
    answers = answers_at_length(answers) if chosen.longer else answers
    plan = plan_of(chosen, architecture, machine, answers, calibration_for(machine), wish.grown, wish.context)
    if plan.impediment:
        raise context_refusal(plan) if chosen.longer else no_teacher(plan.impediment)
    found = appraise(plan, machine, load_of(plan, answers, machine, own_data=True))
    needed = found if chosen.runs else appraise(plan, machine, load_of(plan, answers, machine))
    if not runs_here(chosen, plan, needed.verdict):
        raise EngineError(
            "approach.not_runnable",
            chosen.not_runnable_reason,
            next_step="Choose QLoRA, LoRA, LoRA with a large rank, or a larger model with QLoRA.",
        )
    if chosen.model in (TargetModel.DEEPER, TargetModel.WIDER) and wish.grown is None:
        raise EngineError(
            "plan.no_growth",
            f"{chosen.title} needs a plan of how to grow.",
            next_step="Choose one of the plans; scaler-wizard expand MODEL --dry-run shows them.",
        )
    if wish.grown is not None and not wish.grown.task.trains:
        return grown_spec(draft_spec(plan, answers, machine, train="demo", name=wish.name), plan, wish.grown)
    if plan.context is not None and not plan.context.train:
        return _measured_spec(plan, found, answers, machine, wish)
    if missing := missing_library(plan, machine):
        raise EngineError(
            "plan.library", f"{chosen.title} cannot run here.", cause=missing, next_step=INSTALL_BITSANDBYTES
        )
    if found.verdict is Verdict.NO and not wish.force:
        raise refusal_of(found, "plan.does_not_fit")
    train = wish.train or ("demo" if answers.trains_on_text else answers.text("data"))
    if chosen.longer and train == DEMO:
        train = DEMO_DOCUMENTS
    if not train:
        raise EngineError(
            "plan.no_data",
            "There is no data to train on yet.",
            next_step="Name a file (--data FILE), or use --data demo with the demo model.",
        )
    spec = draft_spec(plan, answers, machine, train=train, name=wish.name)
    on_text = answers.trains_on_text
    tokens = data_tokens(answers if on_text or train == answers.text("data") else answers.with_values(data=train))
    if on_text:
        spec = text_spec(spec, plan, wish.sources, tokens[1])
    if chosen.teacher:
        spec = taught_spec(spec, plan, answers)
    if wish.grown is not None:
        spec = grown_spec(spec, plan, wish.grown)
    if wish.grown is not None or on_text:
        return msgspec.structs.replace(spec, prediction=prediction_of(found))
    return msgspec.structs.replace(spec, prediction=predict(spec, plan.final, machine, tokens_per_epoch=tokens))


def _on_text(wish: JobWish, answers: Answers) -> JobWish:
    """Large text has sequences of one length: no other window than the full one goes with it."""
    if not answers.trains_on_text:
        return wish
    return replace(wish, context=replace(wish.context or ContextChoice(), window=FULL, curriculum=()))


def _measured_spec(plan: Plan, found: Appraisal, answers: Answers, machine: Machine, wish: JobWish) -> JobSpec:
    """A longer window that is measured and not trained: no data is needed."""
    if found.verdict is Verdict.NO and not wish.force:
        raise refusal_of(found, "plan.does_not_fit")
    spec = draft_spec(plan, answers, machine, train="demo", name=wish.name)
    return msgspec.structs.replace(spec, prediction=prediction_of(found))


def draft_spec(plan: Plan, answers: Answers, machine: Machine, *, train: str, name: str = "") -> JobSpec:
    """The spec of a plan, without a prediction; nothing is refused here."""
    work, recipe, demo = plan.work, plan.recipe, train in (DEMO, DEMO_DOCUMENTS)
    source = _hub_name(answers.model if plan.approach.model is not TargetModel.LARGER else plan.final.name)
    steps = _steps(plan, answers)
    spec = JobSpec(
        task=Task.QLORA if work.packed else Task.LORA,
        name=name[:80],
        model=ModelSection(source=source),
        data=DataSection(
            train=train,
            heldout=train if demo else "",
            base_text="demo" if source == "demo" else "general",
            max_length=work.sequence,
            packing=recipe.flag("packing"),
        ),
        adapter=AdapterSection(
            rank=work.rank,
            alpha=_alpha(plan),
            targets=work.targets,
            rslora=work.rank >= 64,
        ),
        training=_training(work, recipe),
        evaluation=EvaluationSection(
            every_steps=max(steps // 10, 5),
            early_stop_patience=recipe.whole("early_stop_patience"),
            sample_prompts=("demo",) if train == DEMO and source == DEMO else (),
        ),
        checkpoint=CheckpointSection(every_steps=min(max(steps // 6, 10), 500)),
        output=OutputSection(merge=answers.text("output") == "merged"),
        export=ExportSection(to=answers.destinations),
        cost=_cost(plan, answers, machine),
    )
    return context_spec(spec, plan, steps) if plan.context is not None else spec


def grown_spec(spec: JobSpec, plan: Plan, grown: Grown) -> JobSpec:
    """The spec with its growth, and with rates for whole weights: old ones move a tenth as far as an adapter would."""
    rate = spec.training.learning_rate
    old, new = (rate * FULL_RATE, rate * NEW_RATE)
    if grown.task in (Task.NEW_BLOCKS, Task.QLORA_GROWN):
        old, new = new, 0.0
    training = msgspec.structs.replace(
        spec.training,
        learning_rate=old,
        new_learning_rate=new,
        new_warmup_ratio=NEW_WARMUP if new else 0.0,
        optimizer=_OPTIMIZERS[plan.work.optimizer],
    )
    return msgspec.structs.replace(
        spec,
        task=grown.task,
        training=training,
        expansion=expansion_section(grown.choice.plan),
        output=msgspec.structs.replace(spec.output, merge=False),
    )


def _training(work: Workload, recipe: Recipe) -> TrainingSection:
    return TrainingSection(
        epochs=recipe.number("epochs"),
        batch_size=work.batch,
        gradient_accumulation=work.accumulation,
        learning_rate=recipe.number("learning_rate"),
        warmup_ratio=recipe.number("warmup_ratio"),
        schedule=Schedule(recipe.text("schedule")),
        optimizer=Optimizer(recipe.text("optimizer")),
        gradient_checkpointing=work.checkpointing,
        decay_ratio=recipe.number_or("decay_ratio", TrainingSection().decay_ratio),
        final_rate_ratio=recipe.number_or("final_rate_ratio", 0.0),
    )


def _alpha(plan: Plan) -> float:
    """The recipe's alpha, in proportion to the rank; 16 with rank-stabilised scaling (rank 64 and above)."""
    if plan.work.rank >= 64:
        return 16.0
    return (
        plan.recipe.number("alpha") / plan.recipe.number("rank") * plan.work.rank
        if plan.approach.rank
        else max(plan.recipe.number("alpha"), 1.0)
    )


def _steps(plan: Plan, answers: Answers) -> int:
    tokens = data_tokens(answers)[1] * plan.recipe.number("epochs")
    return max(math.ceil(tokens / PACKED_FILL / (plan.work.tokens * plan.work.accumulation)), 1)


def _price(plan: Plan, answers: Answers, machine: Machine) -> float:
    if machine.price_usd_per_hour is not None:
        return machine.price_usd_per_hour
    if not answers.rented:
        return 0.0
    return round(hourly_rent(device_of(plan, machine), Tariff(True, None, None, max(len(machine.gpus), 1))).likely, 4)


def _cost(plan: Plan, answers: Answers, machine: Machine) -> CostSection:
    """Rent of a paid machine, or one's own tariff; a limit only where one of them can reach it."""
    if answers.rented or machine.price_usd_per_hour is not None:
        return CostSection(usd_per_hour=_price(plan, answers, machine), budget_usd=answers.number("budget_usd"))
    tariff = answers.number("usd_per_kwh")
    return CostSection(usd_per_kwh=tariff, budget_usd=answers.number("budget_usd") if tariff else 0.0)


def _hub_name(source: str) -> str:
    profile = find_model_profile(source)
    return profile.hub_id if profile is not None else source
