"""The plans an expansion can follow under the answers, with what each takes to train on the machine at hand.

Owns the target, the questions to the planner, and the default way of training. Plans are `engine.expansion`'s, figures
`engine.advise.appraisal`'s: the same as the matrix and the review show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.advise.amounts import device_of, load_of
from engine.advise.answers import Answers
from engine.advise.appraisal import Appraisal, appraise
from engine.advise.approaches import Approach, TargetModel, find_approach
from engine.advise.fit import calibration_for, plan_of
from engine.advise.grown import Grown, only_adds_layers, tasks_for
from engine.advise.operator_options import with_operators
from engine.errors import EngineError
from engine.estimate.estimate import Verdict
from engine.expansion.asked import pick, source_of
from engine.expansion.checks import Wish
from engine.expansion.costs import TrainingQuestion
from engine.expansion.grown import grown_architecture
from engine.expansion.packed import refuse_run
from engine.expansion.planner import PlanChoice, Source, choice_of, plans_for
from engine.hardware.machine import Machine
from engine.jobs.spec_section import Task
from engine.models.architecture import Architecture
from engine.models.source import ModelRef


@dataclass(frozen=True, slots=True)
class GrowthOption:
    """One plan with what training it takes here."""

    grown: Grown
    found: Appraisal

    @property
    def choice(self) -> PlanChoice:
        """The planner's."""
        return self.grown.choice


@dataclass(frozen=True, slots=True)
class Setting:
    """For whom plans are made."""

    approach: str
    architecture: Architecture
    machine: Machine
    answers: Answers


def grows(approach: str) -> bool:
    """Whether an approach begins with growing the model."""
    return find_approach(approach).model in (TargetModel.DEEPER, TargetModel.WIDER)


def growth_target(setting: Setting) -> int:
    """Parameters to reach: as answered, else as the approach usually grows."""
    asked = round(setting.answers.number("target_parameters"))
    own = setting.architecture.parameters
    return asked if asked > own else round(find_approach(setting.approach).growth * own)


def growth_options(setting: Setting, source: Source, target: int = 0, *, seed: int = 17) -> tuple[GrowthOption, ...]:
    """Plans near `target` (0: `growth_target`), the approach's own kind first among equals.

    Raises EngineError `expansion.*` when the model cannot grow, or not that far.
    """
    refuse_run(source.config, setting.answers.model or "The model")
    wanted = target or growth_target(setting)
    if wanted <= source.parameters:
        raise EngineError(
            "expansion.target",
            "That is not larger than the model is.",
            cause="Expansion takes nothing away.",
            next_step="Ask for more parameters.",
        )
    choices = plans_for(source, wanted, _question(setting), Wish(seed=seed))
    options = tuple(option_of(setting, choice) for choice in choices)
    return _recommended(options, find_approach(setting.approach))


def recommended_growth(setting: Setting, ref: ModelRef, name: str = "", *, seed: int = 17) -> Grown | None:
    """The plan called `name`, or the recommended one; None for an approach that does not grow the model.

    Raises EngineError `expansion.*`, also when there is no such plan.
    """
    if not grows(setting.approach):
        return None
    options = growth_options(setting, source_of(ref, setting.architecture), seed=seed)
    chosen = pick(tuple(option.choice for option in options), name)
    return next(option.grown for option in options if option.choice is chosen)


def option_of(setting: Setting, choice: PlanChoice, task: Task | None = None) -> GrowthOption:
    """A plan, trained as `task` says (None: the default), held against the machine."""
    architecture = grown_architecture(
        setting.architecture, choice.plan.after, choice.parameters, choice.plan.target_family
    )
    grown = Grown(choice, architecture, task or default_task(setting, choice))
    approach = find_approach(setting.approach)
    plan = plan_of(
        approach, setting.architecture, setting.machine, setting.answers, calibration_for(setting.machine), grown
    )
    return GrowthOption(grown, appraise(plan, setting.machine, load_of(plan, setting.answers, setting.machine)))


def rechosen(setting: Setting, source: Source, option: GrowthOption, operators: Mapping[str, str]) -> GrowthOption:
    """The same sizes grown by other operators (axis -> name). Raises EngineError `expansion.*`."""
    old = option.choice
    checked = with_operators(source.layout, source.config, old.plan, operators)
    choice = choice_of(source, checked, name=old.id, target_parameters=old.target_parameters)
    same = choice.exact == old.exact
    kept = replace(choice, recommended=old.recommended and same, reason=old.reason if same else "")
    task = option.grown.task if option.grown.task in tasks_for(checked.plan) else None
    return option_of(setting, kept, task)


def default_task(setting: Setting, choice: PlanChoice) -> Task:
    """Added blocks alone where only blocks are added; else everything."""
    return Task.NEW_BLOCKS if only_adds_layers(choice.plan) else Task.FULL


def _recommended(options: tuple[GrowthOption, ...], approach: Approach) -> tuple[GrowthOption, ...]:
    """For block expansion the plan that only adds blocks is the recommended one, when there is one and it fits."""
    if approach.model is not TargetModel.DEEPER:
        return options
    own = next((option for option in options if only_adds_layers(option.choice.plan)), None)
    if own is None or own.choice.recommended or own.found.verdict is Verdict.NO:
        return options
    reason = f"{own.choice.title}: only new blocks learn, everything the model knows stays frozen."
    return tuple(
        replace(
            option,
            grown=replace(
                option.grown,
                choice=replace(
                    option.choice,
                    recommended=option is own,
                    reason=reason if option is own else "" if option.choice.recommended else option.choice.reason,
                ),
            ),
        )
        for option in options
    )


def _question(setting: Setting) -> TrainingQuestion:
    """What the planner needs to know of the machine."""
    approach = find_approach(setting.approach)
    plan = plan_of(approach, setting.architecture, setting.machine, setting.answers)
    return TrainingQuestion(
        setting.architecture,
        sequence=plan.work.sequence,
        batch=plan.work.batch,
        accumulation=plan.work.accumulation,
        tokens=approach.tokens[1] if approach.tokens else 1e9,
        device=device_of(plan, setting.machine),
        free_bytes=plan.devices.free_bytes,
    )
