"""The comparison matrix: every approach for one model on one machine under the given answers, in milliseconds.

Owns rows, verdicts and their words, and the JSON form. Must not know how it is drawn; never leaves an approach out.
"""

from __future__ import annotations

from typing import Any

from engine.advise.amounts import cost_of, device_of, disk_of, hours_of
from engine.advise.answers import Answers
from engine.advise.approaches import Approach, TargetModel, load_approaches
from engine.advise.fit import NO_HOURS, TIGHT_HOURS, Plan, missing_library, plan_of
from engine.advise.matrix import ApproachRow, Matrix
from engine.advise.recommend import recommend
from engine.estimate.estimate import Estimate, Origin, Verdict
from engine.estimate.memory import estimate_memory, limiting_words
from engine.estimate.storage import estimate_host_ram
from engine.estimate.workload import Loss
from engine.hardware.machine import Machine
from engine.models.architecture import Architecture
from engine.units import format_bytes, format_hours

NO_GPU_BYTES = Estimate(0.0, 0.0, 0.0, "bytes", Origin.FORMULA)
"""VRAM on a machine without a GPU: the need is in RAM."""


def build_matrix(architecture: Architecture, machine: Machine, answers: Answers) -> Matrix:
    """One row per approach, and the recommendation. Raises EngineError only for impossible answers."""
    rows = tuple(_row(approach, architecture, machine, answers) for approach in load_approaches())
    advice = recommend(rows, answers)
    return Matrix(
        model=architecture.name,
        machine=machine.label,
        simulated=machine.simulated,
        rows=rows,
        recommended=advice.approach,
        recommendation=advice.why,
        otherwise=advice.otherwise,
        warnings=advice.warnings,
    )


def to_json(matrix: Matrix) -> dict[str, Any]:
    """The object of `scaler-wizard matrix --json`."""
    return {
        "model": matrix.model,
        "machine": matrix.machine,
        "simulated": matrix.simulated,
        "recommended": matrix.recommended,
        "recommendation": matrix.recommendation,
        "warnings": list(matrix.warnings),
        "approaches": [_row_json(row, matrix) for row in matrix.rows],
    }


def _row_json(row: ApproachRow, matrix: Matrix) -> dict[str, Any]:
    device = row.vram if row.vram.likely else row.ram
    return {
        "id": row.id,
        "title": row.title,
        "base_parameters": row.base_parameters,
        "final_parameters": row.final_parameters,
        "effective_capacity": row.effective_capacity,
        "verdict": row.verdict.value,
        "verdict_reason": row.verdict_reason,
        "vram_bytes": round(row.vram.likely),
        "vram_range_bytes": [round(row.vram.low), round(row.vram.high)],
        "ram_bytes": round(row.ram.likely),
        "ram_range_bytes": [round(row.ram.low), round(row.ram.high)],
        "disk_bytes": round(row.disk.likely),
        "hours": _range(row.hours),
        "cost_usd": _range(row.cost_usd),
        "performance": row.performance,
        "reason": row.reason,
        "settings": row.settings,
        "runnable": row.runnable,
        "not_runnable_reason": row.not_runnable_reason,
        "otherwise": matrix.otherwise.get(row.id, ""),
        "origin": device.origin.value,
        "breakdown": {part.name: round(part.amount) for part in device.breakdown},
    }


def _range(estimate: Estimate) -> dict[str, float]:
    return {"low": estimate.low, "likely": estimate.likely, "high": estimate.high}


def _row(approach: Approach, architecture: Architecture, machine: Machine, answers: Answers) -> ApproachRow:
    plan = plan_of(approach, architecture, machine, answers)
    device = device_of(plan, machine)
    memory = estimate_memory(plan.work)
    on_cpu = plan.devices.on_cpu
    ram = memory if on_cpu else estimate_host_ram(plan.work, processes=plan.work.shards)
    disk = disk_of(plan, answers)
    hours = hours_of(plan, answers, device)
    verdict, why = _verdict(plan, machine, ram, disk, hours)
    larger_model = approach.model is TargetModel.LARGER
    return ApproachRow(
        id=approach.id,
        title=approach.title,
        base_parameters=plan.final.parameters if larger_model else architecture.parameters,
        final_parameters=plan.final.parameters,
        effective_capacity=approach.capacity,
        verdict=verdict,
        verdict_reason=why,
        vram=NO_GPU_BYTES if on_cpu else memory,
        ram=ram,
        disk=disk,
        hours=hours,
        cost_usd=cost_of(hours, plan, machine, answers, device),
        performance=approach.performance,
        reason=approach.reason,
        runnable=approach.runs,
        not_runnable_reason=approach.not_runnable_reason,
        settings=settings_words(plan),
        limiting=limiting_words(plan.work),
    )


def settings_words(plan: Plan) -> str:
    """What the figures assume: "Qwen3-8B, micro-batch 4 x 2,048 tokens, rank 16, checkpointing"."""
    work = plan.work
    words = [] if plan.approach.model is TargetModel.SAME else [work.architecture.name]
    words.append(f"micro-batch {work.batch} x {work.sequence:,} tokens")
    if plan.approach.method == "adapter":
        words.append(f"rank {work.rank}")
    elif plan.approach.method == "new blocks":
        words.append(f"{work.trained_layers} new of {work.architecture.layers} layers learn")
    else:
        words.append(f"every parameter learns, {work.optimizer.value}")
    words.append("checkpointing" if work.checkpointing else "no checkpointing")
    words.append("bf16" if work.compute_bytes == 2 else "fp32")
    if work.packed and work.architecture.moe is not None:
        words.append("experts stay unpacked in fp32")
    if work.loss is not Loss.FULL:
        words.append("chunked loss")
    if work.teacher is not None:
        words.append(f"teacher {work.teacher.name} in 4 bits")
    if work.shards > 1:
        words.append(f"ZeRO-3/FSDP over {work.shards} cards")
    elif not plan.devices.on_cpu:
        words.append("one card; data parallel would need all of it on each")
    return ", ".join(words + list(plan.final.notes[:1] if plan.approach.model is TargetModel.LARGER else ()))


def _verdict(plan: Plan, machine: Machine, ram: Estimate, disk: Estimate, hours: Estimate) -> tuple[Verdict, str]:
    """Memory first (upper bound against free), then time (90 days, a year), then host RAM and disk (at best tight)."""
    if missing := missing_library(plan, machine):
        return Verdict.NO, missing
    verdict, free = plan.memory_verdict, plan.devices.free_bytes
    where = (
        "this machine has"
        if plan.devices.on_cpu
        else "each of these cards has"
        if plan.work.shards > 1
        else "this GPU has"
    )
    kind = "RAM free" if plan.devices.on_cpu else "free"
    low, likely, high = plan.bounds
    del low
    if verdict is Verdict.NO:
        need = f"needs about {format_bytes(likely)} (up to {format_bytes(high)})"
        return verdict, f"{need}, {where} {format_bytes(free)} {kind}"
    span = f"at most {format_bytes(high)}, {where} {format_bytes(free)} {kind}"
    if hours.likely > TIGHT_HOURS:
        on = "this CPU" if plan.devices.on_cpu else "these cards" if plan.work.shards > 1 else "this card"
        sentence = f"fits in memory, but takes about {format_hours(hours.likely)} on {on}"
        return (Verdict.NO if hours.likely > NO_HOURS else Verdict.TIGHT), sentence
    if verdict is Verdict.TIGHT:
        return (
            verdict,
            f"likely {format_bytes(likely)}, but could need {format_bytes(high)}; {where} {format_bytes(free)} {kind}",
        )
    if not plan.devices.on_cpu and ram.likely > machine.ram.available_bytes:
        return (
            Verdict.TIGHT,
            f"needs {format_bytes(ram.likely)} RAM, {format_bytes(machine.ram.available_bytes)} is available",
        )
    free_disk = min((disk.free_bytes for disk in machine.disks), default=None)
    if free_disk is not None and disk.likely > free_disk:
        return Verdict.TIGHT, f"needs {format_bytes(disk.likely)} disk, {format_bytes(free_disk)} is free"
    return verdict, span
