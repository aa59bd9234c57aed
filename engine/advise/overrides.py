"""Settings given beside a plan or a spec: length, rows, rank, packing.

Owns putting them in. Must not know where they were typed; impossible ones are refused by the workload and the spec.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from engine.advise.fit import Plan, memory_bounds_on
from engine.errors import EngineError
from engine.estimate.workload import Packing4Bit
from engine.jobs.spec import JobSpec, Task
from engine.jobs.spec_toml import canonical
from engine.units import parse_count

PACKINGS = ("none", "nf4")


@dataclass(frozen=True, slots=True)
class Settings:
    """None or "" leaves a setting as it is."""

    sequence: int | None = None
    batch: int | None = None
    rank: int | None = None
    quantization: str = ""
    """ "none" or "nf4"."""


def plan_with(plan: Plan, settings: Settings) -> Plan:
    """The plan with these settings. Raises EngineError `estimate.value` or `estimate.conflict`."""
    work, given = plan.work, settings
    if given.sequence is not None:
        work = replace(work, sequence=given.sequence)
    if given.batch is not None:
        effective = work.batch * work.accumulation
        work = replace(work, batch=given.batch, accumulation=max(effective // max(given.batch, 1), 1))
    if given.rank is not None:
        work = replace(work, rank=given.rank)
    if given.quantization:
        packing = Packing4Bit.NONE if given.quantization == "none" else Packing4Bit.NF4_DOUBLE
        work = replace(work, packing=packing)
    return plan if work is plan.work else replace(plan, work=work, bounds=memory_bounds_on(work, plan.calibration))


def spec_with(spec: JobSpec, settings: Settings) -> JobSpec:
    """The spec with these settings. Raises EngineError `spec.value`."""
    change = msgspec.structs.replace
    if settings.sequence is not None:
        spec = change(spec, data=change(spec.data, max_length=settings.sequence))
    if settings.batch is not None:
        spec = change(spec, training=change(spec.training, batch_size=settings.batch))
    if settings.rank is not None:
        spec = change(spec, adapter=change(spec.adapter, rank=settings.rank))
    if settings.quantization:
        task = Task.LORA if settings.quantization == "none" else Task.QLORA
        spec = change(spec, task=task, quantization=change(spec.quantization, kind="auto"))
    return canonical(spec)


def parse_setting(name: str, text: str | None) -> int | None:
    """ "2048", "32k" (32,768), "-5" -> a whole number; None stays None. Raises EngineError `estimate.value`."""
    if text is None:
        return None
    plain = text.strip().replace(",", "").replace("_", "")
    try:
        if plain[-1:] in ("k", "K") and plain[:-1].isdigit():
            return int(plain[:-1]) * 1024
        if plain.lstrip("+-").isdigit():
            return int(plain)
        return round(float(plain)) if "e" in plain.lower() else parse_count(plain)
    except (EngineError, ValueError, OverflowError):
        raise EngineError(
            "estimate.value", f"'{text}' is no number for --{name}.", next_step=f"For example --{name} 2048."
        ) from None
