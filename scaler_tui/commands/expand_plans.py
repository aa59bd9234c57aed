"""What `expand` plans with: the model's folder, the plans near a size with their figures, an unfinished attempt's plan.

Owns the table of plans and its JSON. Must not grow anything.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError
from engine.units import format_count
from scaler_tui import growth_text, output
from scaler_tui.machines import machine_for

if TYPE_CHECKING:
    from engine.expansion.costs import TrainingQuestion
    from engine.expansion.plan import ExpansionPlan
    from engine.expansion.planner import PlanChoice, Source


@dataclass(frozen=True, slots=True)
class Planned:
    """Plans for one model, and the one that is taken."""

    name: str
    folder: Path
    """Empty path when only the model's shape is known (a dry run)."""
    source: Source
    choices: tuple[PlanChoice, ...]
    picked: PlanChoice
    place: str
    """ "VRAM" or "RAM": where training would need its memory."""
    machine: str
    tokens: float
    """That the hours are for."""
    research: str
    """The frank line."""


def planned(arguments: argparse.Namespace, *, to: str) -> Planned:
    """Plans for `to` or for the sizes given as flags. Raises EngineError `model.*`, `expansion.*`."""
    from engine.advise.approaches import frank_line
    from engine.expansion.asked import choices_for, pick, source_of
    from engine.expansion.checks import Wish
    from engine.models.analyze import analyze_model
    from engine.models.resolve import require_weights, resolve_model

    ref = resolve_model(arguments.model)
    folder = Path() if arguments.dry_run and not ref.has_weights else require_weights(ref)
    architecture = analyze_model(ref)
    source = source_of(ref, architecture)
    wish = Wish(
        hidden=arguments.hidden or None,
        ffn=arguments.ffn or None,
        layers=arguments.layers or None,
        heads=arguments.heads or None,
        kv_heads=arguments.kv_heads or None,
        experts=arguments.experts or None,
        operators=tuple(arguments.operator),
        seed=arguments.seed,
        dtype=arguments.dtype,
    )
    if not to and not arguments.dry_run:  # nothing is compared: nobody has to know the machine
        choices = choices_for(source, wish)
        return Planned(ref.name, folder, source, choices, pick(choices, arguments.plan), "", "", 0.0, frank_line())
    machine = machine_for(arguments.gpu)
    question = training_question(architecture, machine)
    choices = choices_for(source, wish, to, question)
    return Planned(
        name=ref.name,
        folder=folder,
        source=source,
        choices=choices,
        picked=pick(choices, arguments.plan),
        place="VRAM" if machine.gpus else "RAM",
        machine=machine.label + ("  SIM: not this machine" if machine.simulated else ""),
        tokens=question.tokens,
        research=frank_line(),
    )


def training_question(architecture: Any, machine: Any) -> TrainingQuestion:
    """What training the grown model would take on `machine`."""
    from engine.advise.devices import single_device
    from engine.estimate.cards import cpu_speed, gpu_speed
    from engine.expansion.costs import TrainingQuestion

    devices = single_device(machine)
    speed = cpu_speed(machine) if devices.on_cpu else gpu_speed(devices.gpus[0])
    return TrainingQuestion(architecture, device=speed, free_bytes=devices.free_bytes)


def model_folder(model: str) -> Path:
    """The folder of a model whose weights are here. Raises EngineError `model.*`."""
    from engine.models.resolve import require_weights, resolve_model

    return require_weights(resolve_model(model))


def unfinished(out: Path) -> tuple[ExpansionPlan, int]:
    """Plan and shard size of the attempt that was interrupted. Raises EngineError `surgery.nothing_to_resume`."""
    import msgspec

    from engine.expansion.certificate import read_certificate
    from engine.expansion.plan_io import plan_from_tree
    from engine.surgery.shards import DEFAULT_SHARD_BYTES
    from engine.surgery.staging import ORDER, Order, staging_folder

    folder = staging_folder(out)
    try:
        order = msgspec.json.decode((folder / ORDER).read_bytes(), type=Order)
        return plan_from_tree(order.plan), order.shard_bytes
    except (OSError, msgspec.MsgspecError):
        certificate = read_certificate(folder) if folder.is_dir() else None
    if certificate is not None:  # complete but for its name
        return plan_from_tree(certificate.plan), DEFAULT_SHARD_BYTES
    raise EngineError(
        "surgery.nothing_to_resume",
        f"There is no unfinished expansion to {out}.",
        cause=f"{folder} is not there, or was left before anything was decided.",
        next_step="Start it without --resume.",
    )


# ── showing ──────────────────────────────────────────────────────────────────────────────────────────────────────
def plan_side_by_side(found: Planned) -> None:
    """The plans as a table, the words of the one that is taken, and the frank line."""
    columns = growth_text.plan_columns(
        found.source, found.choices, needs_of(found.choices), place=found.place, tokens=found.tokens
    )
    target = found.choices[0].target_parameters
    near = f", plans near {format_count(target)}" if target else ""
    output.say(f"{found.name}: {format_count(found.source.parameters)} parameters{near}")
    output.say(f"Training figures are for {found.machine}, and for {growth_text.short_count(found.tokens)} tokens.")
    output.say()
    headings = [f"{'* ' if column.recommended else ''}{column.title.upper()}" for column in columns]
    rows = [
        [label, *(column.shape[index][1] for column in columns)] for index, (label, _) in enumerate(columns[0].shape)
    ]
    for index, measure in enumerate(columns[0].measures):
        rows.append([measure.label, *(column.measures[index].text for column in columns)])
    rows.append(["Function", *(column.exact or growth_text.NO_FIGURE for column in columns)])
    if len(found.choices) > 1:
        rows.append(["Choose with", *(f"--plan {column.name}" if column.name else "" for column in columns)])
    output.table(["", *headings], rows)
    output.say()
    for sentence in growth_text.plan_words(found.picked):
        output.say(sentence)
    output.say(f"! {found.research}")


def needs_of(choices: tuple[PlanChoice, ...]) -> dict[str, growth_text.Need]:
    """Training needs by plan, as the planner estimates them."""
    return {
        choice.id: growth_text.Need(
            choice.memory.likely if choice.memory else 0.0, choice.hours.likely if choice.hours else 0.0
        )
        for choice in choices
    }


def plans_json(found: Planned, out: str) -> dict[str, Any]:
    """The object of `--dry-run --json`."""
    return {
        "source": str(found.folder) if found.folder != Path() else found.name,
        "output": out,
        "parameters_before": found.source.parameters,
        "target_parameters": found.choices[0].target_parameters,
        "plan": found.picked.id,
        "plans": [_plan_json(choice) for choice in found.choices],
        "machine": found.machine,
        "research": found.research,
    }


def _plan_json(choice: PlanChoice) -> dict[str, Any]:
    after = choice.plan.after
    return {
        "id": choice.id,
        "title": choice.title,
        "recommended": choice.recommended,
        "reason": choice.reason,
        "exact": choice.exact,
        "operators": choice.plan.operators,
        "layers": after.layers,
        "hidden": after.hidden,
        "ffn": after.ffn or after.expert_ffn,
        "heads": after.heads,
        "kv_heads": after.kv_heads,
        "experts": after.experts,
        "parameters": choice.parameters,
        "active_parameters": choice.active_parameters,
        "kv_cache_bytes_per_token": choice.kv_cache_bytes_per_token,
        "disk_bytes": choice.disk_bytes,
        "training": choice.costs.method,
        "training_bytes": round(choice.memory.likely) if choice.memory else None,
        "training_hours": round(choice.hours.likely, 3) if choice.hours else None,
        "portable": choice.portable,
        "notes": list(choice.checked.notes),
        "warnings": list(choice.checked.warnings),
    }
