"""What each option of a question would mean right now: possible or not and why, recommended or not, its effect.

Owns those judgements; an impossible option stays visible with its reason. Must not know which question is next.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.advise.answers import Answers
from engine.advise.approaches import find_approach, rule_for
from engine.advise.fit import teacher_asked
from engine.advise.matrix import Matrix
from engine.advise.questions import Option, Question
from engine.advise.recommend import TIMELINE_HOURS
from engine.advise.targets import larger
from engine.context.gguf_graphs import GRAPHS
from engine.errors import EngineError
from engine.estimate.storage import GGUF_TYPES
from engine.hardware.machine import Machine
from engine.jobs.spec_export import Destination
from engine.models.architecture import Architecture
from engine.resources import demo_dir
from engine.units import format_bytes, format_count, format_usd


@dataclass(frozen=True, slots=True)
class OptionContext:
    """What is known while asking; anything may still be missing."""

    machine: Machine | None = None
    architecture: Architecture | None = None
    matrix: Matrix | None = None


@dataclass(frozen=True, slots=True)
class OptionState:
    """One option as shown."""

    option: Option
    enabled: bool
    reason: str
    """Why it is not possible; "" when it is."""
    recommended: bool
    effect: str
    """What it would change, in a few words."""


def option_states(question: Question, answers: Answers, context: OptionContext) -> tuple[OptionState, ...]:
    """Every option of `question`, in order, none left out."""
    default = question.default_for(answers.values)
    states = []
    for option in question.options:
        reason = _impossible(question.id, option, answers, context)
        recommended = option.value == default and not reason
        states.append(OptionState(option, not reason, reason, recommended, _effect(question.id, option, context)))
    return tuple(states)


def _impossible(question_id: str, option: Option, answers: Answers, context: OptionContext) -> str:
    if question_id == "data" and option.value == "demo" and not (demo_dir() / "finetune" / "train.jsonl").is_file():
        return "the demo data is not installed"
    architecture = context.architecture
    if question_id == "teacher" and option.value == "" and architecture is not None:
        return teacher_asked(answers.with_values(teacher=""), architecture)[1].rstrip(".")
    if question_id == "output" and option.value in (Destination.GGUF, Destination.OLLAMA) and architecture is not None:
        known = architecture.family in GRAPHS
        return "" if known else f"GGUF files of '{architecture.family}' models are not written here"
    if question_id == "context" and architecture is not None and answers.goal != "long-documents":
        window = architecture.context_length
        if window and float(option.value) > window:
            return f"this model reads at most {window:,} tokens; choose the goal 'Read longer documents' to go beyond"
    return ""


def _effect(question_id: str, option: Option, context: OptionContext) -> str:
    matrix, machine = context.matrix, context.machine
    if question_id == "goal":
        return f"leads to {find_approach(rule_for(str(option.value)).prefer[0]).title}"
    if (
        question_id == "hardware"
        and option.value in ("this", "this-rented")
        and machine is not None
        and not machine.simulated
    ):
        return machine.label
    if question_id == "card":
        return _card_effect(str(option.value))
    if question_id == "timeline" and matrix is not None:
        limit = TIMELINE_HOURS[str(option.value)]
        return f"{_possible(matrix, limit, None)} of {len(matrix.rows)} approaches fit and finish in time"
    if question_id == "budget_usd" and matrix is not None and option.value:
        return f"{_possible(matrix, None, float(option.value))} of {len(matrix.rows)} approaches fit and stay below it"
    if question_id == "teacher" and option.value == "" and context.architecture is not None:
        teacher = larger(context.architecture)
        return f"{teacher.name}, {format_count(teacher.parameters)} parameters"
    if question_id == "output" and context.architecture is not None:
        return _output_effect(str(option.value), context.architecture.parameters)
    return ""


def _output_effect(output: str, parameters: int) -> str:
    if output == "adapter":
        return ""
    rate = GGUF_TYPES["Q8_0"] if output in (Destination.GGUF, Destination.OLLAMA) else 2
    return f"{format_bytes(rate * parameters)} more disk"


def _possible(matrix: Matrix, hours: float | None, usd: float | None) -> int:
    return sum(
        row.verdict != "no"
        and (hours is None or row.hours.likely <= hours)
        and (usd is None or row.cost_usd.likely <= usd)
        for row in matrix.rows
    )


def _card_effect(text: str) -> str:
    from engine.hardware.gpu_profiles import find_gpu_profile

    name = text.partition("x ")[2] if text[:1].isdigit() and "x " in text[:4] else text
    try:
        profile = find_gpu_profile(name)
    except EngineError:
        return ""
    if profile is None:
        return ""
    low, high = profile.rent_low_usd_per_hour, profile.rent_high_usd_per_hour
    price = f", {format_usd(low)} to {format_usd(high)} per hour rented" if low and high else ""
    return f"{format_bytes(profile.visible_bytes)} each{price}"
