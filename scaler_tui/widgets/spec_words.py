"""A frozen spec as labelled lines, for the page on which a run is agreed to.

Owns the wording of settings. Must not choose or compute any: they are the spec's.
"""

from __future__ import annotations

from engine.advise.figures import Refined
from engine.advise.grown import Grown
from engine.advise.matrix import ApproachRow
from engine.jobs.spec import JobSpec
from engine.jobs.spec_section import Task
from engine.units import format_bytes, format_count, format_duration, format_hours, format_range, format_usd
from scaler_tui.spec_context_text import context_lines
from scaler_tui.spec_growth_text import growth_lines
from scaler_tui.spec_results_text import distillation_lines, export_lines, mix_lines
from scaler_tui.spec_stream_text import stream_lines


def setting_lines(spec: JobSpec) -> list[tuple[str, str]]:
    """(label, words) of what will be done."""
    if spec.task is Task.MIX:
        return [*mix_lines(spec), *export_lines(spec)]
    if spec.task is Task.EXTEND:
        return [*context_lines(spec), ("Saved", "a model folder; its weights are links to the ones that are there")]
    if not spec.task.trains_adapter:
        return [
            *growth_lines(spec),
            *context_lines(spec),
            *stream_lines(spec),
            *distillation_lines(spec),
            *_model_lines(spec),
            *export_lines(spec),
        ]
    adapter = spec.adapter
    extras = (", rsLoRA" if adapter.rslora else "") + (", DoRA" if adapter.dora else "")
    base = "unquantised"
    if spec.quantization_kind != "none":
        double = ", double quantisation" if spec.quantization.double else ""
        base = f"4-bit {spec.quantization_kind.upper()}{double}"
    merged = "; merged model at the end" if spec.output.merge else "; an adapter at the end"
    return [
        *context_lines(spec),
        *stream_lines(spec),
        *distillation_lines(spec),
        _sequence_line(spec),
        ("Adapter", f"rank {adapter.rank}, alpha {adapter.alpha:g}, on {', '.join(adapter.targets)}{extras}"),
        ("Base", f"{base}, compute {spec.training.dtype}"),
        _training_line(spec),
        ("Saved", f"every {spec.checkpoint.every_steps} steps, {spec.checkpoint.keep} kept{merged}"),
        *export_lines(spec),
    ]


def _model_lines(spec: JobSpec) -> list[tuple[str, str]]:
    """Of a job that trains whole weights, or only grows them."""
    if not spec.needs_data:
        return [("Saved", "the grown model, once it is complete and proven; nothing is trained")]
    saved = f"every {spec.checkpoint.every_steps} steps, {spec.checkpoint.keep} kept; a whole model at the end"
    return [_sequence_line(spec), _training_line(spec), ("Saved", saved)]


def _sequence_line(spec: JobSpec) -> tuple[str, str]:
    packing = "packed" if spec.data.packing else "padded"
    if spec.streams:
        return "Sequence", f"{spec.data.max_length} tokens, always full; documents in one cannot see each other"
    return "Sequence", f"{spec.data.max_length} tokens, {packing}, loss on {spec.data.train_on}"


def _training_line(spec: JobSpec) -> tuple[str, str]:
    training = spec.training
    passes = f"{training.max_steps} steps" if training.max_steps else f"{training.epochs:g} epochs"
    if training.max_tokens:
        passes = "tokens as in the stages" if spec.stages else f"{format_count(training.max_tokens)} tokens"
    checkpointing = ", gradient checkpointing" if training.gradient_checkpointing else ""
    new = f", {training.new_learning_rate:g} for new parameters" if training.new_learning_rate else ""
    batch = f"batch {training.batch_size} x {training.gradient_accumulation}"
    if training.tokens_per_step:
        batch = f"batch {training.batch_size}, {training.tokens_per_step:,} tokens a step"
    return (
        "Training",
        f"{passes}, {batch}, "
        f"rate {training.learning_rate:g}{new} {training.schedule}, {training.optimizer.value}{checkpointing}",
    )


def price_lines(spec: JobSpec, row: ApproachRow | None, refined: Refined | None = None) -> list[tuple[str, str]]:
    """(label, words) of what it will cost; hours of a probe instead of the formula's where there are some."""
    promise = spec.prediction
    lines = []
    if refined is not None and refined.hours.origin.value != promise.origin:
        hours = refined.hours
        span = format_range(format_hours(hours.low), format_hours(hours.high))
        lines.append(("Time", f"{span}, likely {format_hours(hours.likely)} [{hours.origin.value}]"))
    elif promise.seconds_high:
        span = format_range(format_duration(promise.seconds_low), format_duration(promise.seconds_high))
        lines.append(("Time", f"{span}, likely {format_duration(promise.seconds_likely)} [{promise.origin}]"))
    if row is not None:
        budget = f"; stops at {format_usd(spec.cost.budget_usd)}" if spec.cost.budget_usd else ""
        rate = f" at {format_usd(spec.cost.usd_per_hour)} an hour" if spec.cost.usd_per_hour else " (electricity)"
        span = format_range(format_usd(row.cost_usd.low), format_usd(row.cost_usd.high))
        lines.append(("Cost", f"{span}{rate}{budget}"))
        lines.append(("Disk", f"{format_bytes(row.disk.likely)} (up to {format_bytes(row.disk.high)})"))
    return lines


def growth_price_lines(grown: Grown | None) -> list[tuple[str, str]]:
    """(label, words) of a job that only grows a model."""
    if grown is None:
        return []
    disk = format_bytes(grown.choice.disk_bytes)
    return [("Fits?", f"needs {disk} of disk, and 1.5 GiB of RAM whatever the size"), ("Disk", disk)]


def data_line(spec: JobSpec, checked: str) -> tuple[str, str]:
    """(label, words): the file, what is held out, and what the check counted."""
    heldout = spec.data.heldout or f"{spec.data.heldout_fraction:.0%} set aside"
    return "Data", f"{spec.data.train}; held-out: {heldout}" + (f"; {checked}" if checked else "")
