"""The comparison matrix: every approach for one model on one machine under the given answers, in milliseconds.

Owns rows, their words, and the JSON form. Must not know how it is drawn; leaves an approach out only
where its data was not chosen (large text).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.advise.amounts import load_of
from engine.advise.answers import Answers
from engine.advise.appraisal import Appraisal, appraise
from engine.advise.approaches import Approach, TargetModel, find_approach, load_approaches
from engine.advise.context import ContextChoice, window_words
from engine.advise.demo_labs import measured_performance
from engine.advise.fit import Plan, calibration_for, plan_of
from engine.advise.grown import Grown
from engine.advise.matrix import ApproachRow, Matrix
from engine.advise.recommend import recommend
from engine.advise.taught import teacher_words
from engine.estimate.estimate import Estimate, Origin, Verdict
from engine.estimate.workload import Loss, Method, Purpose
from engine.hardware.machine import Machine
from engine.models.architecture import Architecture

NO_GPU_BYTES = Estimate(0.0, 0.0, 0.0, "bytes", Origin.FORMULA)
"""VRAM on a machine without a GPU: the need is in RAM."""


def build_matrix(
    architecture: Architecture,
    machine: Machine,
    answers: Answers,
    grown: Mapping[str, Grown] | None = None,
    context: ContextChoice | None = None,
) -> Matrix:
    """One row per approach, and the recommendation. Raises EngineError only for impossible answers.

    `grown`: the plans that were chosen for expansions; their rows are about them. `context`: what was decided about a
    longer window.
    """
    calibration, chosen = calibration_for(machine), grown or {}
    rows = tuple(
        _filled_for(
            plan_of(approach, architecture, machine, answers, calibration, chosen.get(approach.id), context),
            machine,
            answers,
        )
        for approach in load_approaches()
        if answers.trains_on_text or not approach.text
    )
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


def row_of(
    approach: str,
    architecture: Architecture,
    machine: Machine,
    answers: Answers,
    grown: Grown | None = None,
    context: ContextChoice | None = None,
    *,
    own_data: bool = False,
) -> ApproachRow:
    """One row alone; `own_data`: its hours are for the user's data, however much more the approach asks for."""
    chosen = find_approach(approach)
    plan = plan_of(chosen, architecture, machine, answers, calibration_for(machine), grown, context)
    return _filled_for(plan, machine, answers, own_data=own_data)


def _filled_for(plan: Plan, machine: Machine, answers: Answers, *, own_data: bool = False) -> ApproachRow:
    return _filled(plan, appraise(plan, machine, load_of(plan, answers, machine, own_data=own_data)))


def _filled(plan: Plan, found: Appraisal) -> ApproachRow:
    approach, architecture = plan.approach, plan.base
    larger_model = approach.model is TargetModel.LARGER
    return ApproachRow(
        id=approach.id,
        title=approach.title,
        base_parameters=plan.final.parameters if larger_model else architecture.parameters,
        final_parameters=plan.final.parameters,
        effective_capacity=approach.capacity,
        verdict=found.verdict,
        verdict_reason=found.judgement.reason,
        vram=NO_GPU_BYTES if plan.devices.on_cpu else found.memory,
        ram=found.ram,
        disk=found.disk,
        hours=found.hours,
        cost_usd=found.cost_usd,
        performance=measured_performance(approach.id, architecture.source) or approach.performance,
        reason=approach.reason,
        runnable=runs_here(approach, plan, found.verdict),
        not_runnable_reason=""
        if runs_here(approach, plan, found.verdict)
        else plan.impediment or approach.not_runnable_reason,
        impediment=plan.impediment,
        settings=settings_words(plan),
        limiting=found.limiting,
        appraisal=found,
    )


def runs_here(approach: Approach, plan: Plan, verdict: Verdict) -> bool:
    """Whether this version carries it out: growth planned for a cluster does run where one device is enough."""
    if plan.impediment:
        return False
    on_one_device = approach.model is TargetModel.WIDER and plan.work.shards == 1
    return approach.runs or (on_one_device and verdict is not Verdict.NO)


def settings_words(plan: Plan) -> str:
    """What the figures assume: "Qwen3-8B, micro-batch 4 x 2,048 tokens, rank 16, checkpointing"."""
    work = plan.work
    words = [] if plan.approach.model is TargetModel.SAME else [work.architecture.name]
    if plan.context is not None:
        words.append(window_words(plan.context, plan.base.context_length))
    words.append(f"micro-batch {work.batch} x {work.sequence:,} tokens")
    if work.purpose is Purpose.EVALUATE:
        return ", ".join([*words, "forward passes only", "bf16" if work.compute_bytes == 2 else "fp32"])
    if work.method is Method.ADAPTER:
        words.append(f"rank {work.rank}")
    elif work.method is Method.NEW_BLOCKS:
        words.append(f"{work.trained_layers} new of {work.architecture.layers} layers learn")
    else:
        words.append(f"every parameter learns, {work.optimizer.value}")
    words.append("checkpointing" if work.checkpointing else "no checkpointing")
    words.append("bf16" if work.compute_bytes == 2 else "fp32")
    if work.packed and work.architecture.moe is not None:
        words.append("experts stay unpacked in fp32")
    if plan.context is not None:
        words.append("4-bit base" if work.packed else "base unquantised")
        words.append("embeddings and norms learn too" if work.train_embeddings else "norms learn too")
    if work.loss is not Loss.FULL:
        words.append("chunked loss")
    if work.offload_activations:
        words.append("layers' inputs in host RAM")
    if work.teacher is not None:
        words.append(teacher_words(work))
    if work.shards > 1:
        words.append(f"ZeRO-3/FSDP over {work.shards} cards")
    elif not plan.devices.on_cpu:
        words.append("one card; data parallel would need all of it on each")
    return ", ".join(words + list(plan.final.notes[:1] if plan.approach.model is TargetModel.LARGER else ()))
