"""What would make a job fit that does not: each way with its new estimate and what it costs, gentlest first.

Owns those proposals. Must not change a plan itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.advise.fit import Plan, shrink_to_fit
from engine.estimate.estimate import Estimate, Verdict
from engine.estimate.memory import estimate_memory
from engine.estimate.workload import DeviceKind, Method, Packing4Bit, Workload
from engine.hardware.gpu_profiles import GpuProfile, load_gpu_profiles
from engine.models.analyze import analyze
from engine.models.model_profiles import load_model_profiles
from engine.units import format_bytes, format_count, format_usd

DESKTOP_SHARE = 0.97
"""Of a rented card's memory; the driver keeps a little."""
MINIMUM_RANK = 4
MINIMUM_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Fix:
    """One way to make it fit."""

    id: str
    sentence: str
    """What to change and what it costs."""
    memory: Estimate
    """The new estimate on the device that trains."""
    verdict: Verdict


def fixes_for(plan: Plan) -> tuple[Fix, ...]:
    """Ways that make `plan` at least tight, gentlest first: rank, 4 bits, shorter rows, rented card, smaller model.

    Checkpointing and the smallest micro-batch are already in `plan`.
    """
    candidates = (_smaller_rank(plan), _pack(plan), _shorter(plan), _rented(plan), _smaller_model(plan))
    return tuple(fix for fix in candidates if fix is not None and fix.verdict is not Verdict.NO)


def _judge(plan: Plan, work: Workload, free_bytes: float | None = None) -> tuple[Estimate, Verdict]:
    free = plan.devices.free_bytes if free_bytes is None else free_bytes
    memory = estimate_memory(work)
    if memory.high <= free:
        return memory, Verdict.FITS
    return memory, Verdict.TIGHT if memory.likely <= free else Verdict.NO


def _smaller_rank(plan: Plan) -> Fix | None:
    if plan.work.method is not Method.ADAPTER or plan.work.rank <= MINIMUM_RANK:
        return None
    rank, fix = plan.work.rank, None
    while rank > MINIMUM_RANK:
        rank = max(rank // 2, MINIMUM_RANK)
        memory, verdict = _judge(plan, replace(plan.work, rank=rank))
        fix = Fix("rank", f"rank {rank}: {format_bytes(memory.likely)}, a less capable adapter", memory, verdict)
        if verdict is Verdict.FITS:
            break
    return fix


def _pack(plan: Plan) -> Fix | None:
    if plan.work.method is not Method.ADAPTER or plan.work.packed:
        return None
    work = replace(plan.work, packing=Packing4Bit.NF4_DOUBLE)
    memory, verdict = _judge(plan, work)
    shorter = ""
    while verdict is Verdict.NO and work.sequence // 2 >= MINIMUM_LENGTH:
        work = replace(work, sequence=work.sequence // 2)
        memory, verdict = _judge(plan, work)
        shorter = f" with at most {work.sequence:,} tokens per row"
    return Fix("qlora", f"QLoRA{shorter}: {format_bytes(memory.likely)}, about 30 % slower", memory, verdict)


def _shorter(plan: Plan) -> Fix | None:
    length, fix = plan.work.sequence, None
    while length // 2 >= MINIMUM_LENGTH:
        length //= 2
        memory, verdict = _judge(plan, replace(plan.work, sequence=length))
        sentence = f"at most {length:,} tokens per row: {format_bytes(memory.likely)}, longer rows are cut"
        fix = Fix("length", sentence, memory, verdict)
        if verdict is Verdict.FITS:
            break
    return fix


def _rented(plan: Plan) -> Fix | None:
    best: tuple[float, GpuProfile, Estimate] | None = None
    for card in load_gpu_profiles():
        low, high = card.rent_low_usd_per_hour, card.rent_high_usd_per_hour
        if low is None or high is None or not card.visible_bytes or not card.bf16_native:
            continue
        work = replace(plan.work, device=DeviceKind.GPU, compute_bytes=2)
        memory, verdict = _judge(plan, work, DESKTOP_SHARE * card.visible_bytes)
        if verdict is Verdict.FITS and (best is None or (low + high) / 2 < best[0]):
            best = ((low + high) / 2, card, memory)
    if best is None:
        return None
    price, card, memory = best
    sentence = f"a rented {card.name} at about {format_usd(price)} per hour: {format_bytes(memory.likely)} on it"
    return Fix("rented", sentence, memory, Verdict.FITS)


def _smaller_model(plan: Plan) -> Fix | None:
    limit = 0.9 * plan.final.parameters
    smaller = sorted((m for m in load_model_profiles() if m.parameters < limit), key=lambda m: -m.parameters)
    own = next((m.series for m in load_model_profiles() if m.id == plan.final.name or m.hub_id == plan.final.name), "")
    for model in sorted(smaller, key=lambda m: m.series != own):
        work, _ = shrink_to_fit(replace(plan.work, architecture=analyze(model.id)), plan.devices.free_bytes, 1)
        memory, verdict = _judge(plan, work)
        if verdict is Verdict.FITS:
            size = format_count(model.parameters)
            sentence = f"{model.hub_id} ({size}): {format_bytes(memory.likely)}, a less able model"
            return Fix("model", sentence, memory, verdict)
    return None
