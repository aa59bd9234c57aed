"""The growth in a spec as labelled lines: to which size, with which operators, how it is proven, what learns then.

Owns the wording for review, run details and `--plain`. Must not choose a value: they are the spec's.
"""

from __future__ import annotations

from engine.jobs.spec import JobSpec
from engine.jobs.spec_growth import SIZES, ExpansionSection, StageSection
from engine.jobs.spec_section import Task
from engine.units import format_count, format_usd

LEARNS = {
    Task.EXPAND: "nothing: the model is grown and proven",
    Task.FULL: "every parameter",
    Task.NEW_BLOCKS: "only the added blocks; everything old is frozen",
    Task.NEW_COORDINATES: "the added parts first, then everything",
    Task.QLORA_GROWN: "what growth added or widened, in full; the rest is frozen in 4 bits",
}
_NAMES = {"ffn": "FFN", "kv_heads": "KV heads"}


def growth_lines(spec: JobSpec) -> list[tuple[str, str]]:
    """(label, words); empty for a job that trains an adapter, and for one that only makes the window longer."""
    if spec.task.trains_adapter or spec.task is Task.EXTEND:
        return []
    if spec.stages:
        lines = [(f"Stage {number}", _stage_words(spec, stage)) for number, stage in enumerate(spec.stages, 1)]
        return [*lines, ("Proof", proof_words(spec.expansion))]
    lines = []
    if spec.expansion.grows:
        lines.append(("Growth", f"{size_words(spec.expansion)}; {_how_words(spec.expansion)}"))
        lines.append(("Proof", proof_words(spec.expansion)))
    return [*lines, ("Learns", LEARNS.get(spec.task, spec.task.value))]


def size_words(section: ExpansionSection | StageSection) -> str:
    """ "to 7B parameters", "hidden 4,096, FFN 14,336"."""
    named = [f"{_NAMES.get(name, name)} {value:,}" for name in SIZES if (value := getattr(section, name))]
    if section.to:
        named.insert(0, f"to {section.to} parameters")
    return ", ".join(named) or "sizes by the operators"


def proof_words(section: ExpansionSection) -> str:
    """What will be measured."""
    if not section.proof:
        return "none: nothing is certified"
    text = "the demo corpus" if section.proof_text == "demo" else section.proof_text
    return f"logits in float32, generation, reload, liveness, on {text}; what fails gets no name"


def _how_words(section: ExpansionSection) -> str:
    operators = ", ".join(section.operators) if section.operators else "exact operators"
    cast = f", cast to {section.dtype}" if section.dtype else ""
    return f"{operators}, seed {section.seed}{cast}"


def _stage_words(spec: JobSpec, stage: StageSection) -> str:
    task = spec.task_of(stage)
    grown = f"grow {size_words(stage)}, then " if stage.grows else ""
    steps = f", {stage.max_steps:,} steps" if stage.max_steps else f", {stage.epochs:g} epochs" if stage.epochs else ""
    learns = "nothing more" if task is Task.EXPAND else f"train {LEARNS.get(task, task.value)}"
    return f"{grown}{learns}{steps}{_own_words(stage)}"


def _own_words(stage: StageSection) -> str:
    """What a stage says about its text, length and end."""
    parts = [f"{format_count(stage.max_tokens)} tokens"] if stage.max_tokens else []
    parts += [f"sequences of {stage.max_length:,}"] if stage.max_length else []
    parts += [f"rate {stage.learning_rate:g}"] if stage.learning_rate else []
    if stage.weights:
        total = sum(stage.weights.values()) or 1.0
        parts.append(" and ".join(f"{name} {weight / total:.0%}" for name, weight in stage.weights.items()))
    if stage.stop_plateau_evaluations:
        parts.append(f"ends after {stage.stop_plateau_evaluations} evaluations without gain")
    parts += [f"ends at a loss of {stage.stop_loss:g}"] if stage.stop_loss else []
    parts += [f"ends after {stage.stop_hours:g} hours"] if stage.stop_hours else []
    parts += [f"ends at {format_usd(stage.stop_usd)}"] if stage.stop_usd else []
    return "".join(f", {part}" for part in parts)
