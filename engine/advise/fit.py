"""From an approach to a job that fits: settings by recipe, then checkpointing and smaller micro-batches.

Owns that search and the verdict. Must not know titles, reasons, hours or money.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.advise.answers import Answers
from engine.advise.approaches import Approach, TargetModel
from engine.advise.recipes import Recipe, choose_recipe
from engine.advise.targets import deeper, larger, wider
from engine.estimate.estimate import Verdict
from engine.estimate.memory import memory_bounds
from engine.estimate.workload import ALL_LINEAR, DeviceKind, Loss, Method, Packing4Bit, Workload
from engine.hardware.machine import Gpu, Machine
from engine.models.architecture import Architecture

TIGHT_HOURS = 90 * 24.0
"""A job that likely takes over 90 days is at best tight, however well it fits in memory."""
NO_HOURS = 365 * 24.0
"""A job that likely takes over a year is no."""
_HOPPER_WORKSPACE_BYTES = 2 * 32 * 1024**2
_SMALLER_WORKSPACE_BYTES = 2 * 8_519_680


@dataclass(frozen=True, slots=True)
class Devices:
    """What a job may use."""

    gpus: tuple[Gpu, ...]
    """Equal cards; empty on a machine without a GPU."""
    free_bytes: int
    """Free memory of the fullest of them, or available RAM."""

    @property
    def on_cpu(self) -> bool:
        """True when there is no GPU."""
        return not self.gpus


def single_device(machine: Machine) -> Devices:
    """The GPU with the most free memory, else the processor."""
    if not machine.gpus:
        return Devices((), machine.ram.available_bytes)
    best = max(machine.gpus, key=lambda gpu: gpu.free_vram_bytes)
    return Devices((best,), best.free_vram_bytes)


def equal_devices(machine: Machine) -> Devices:
    """All cards of the same name as the best one: a sharded job needs equal cards."""
    best = single_device(machine)
    if best.on_cpu:
        return best
    group = tuple(gpu for gpu in machine.gpus if gpu.name == best.gpus[0].name)
    return Devices(group, min(gpu.free_vram_bytes for gpu in group))


@dataclass(frozen=True, slots=True)
class Plan:
    """One approach made concrete on one machine."""

    approach: Approach
    base: Architecture
    final: Architecture
    work: Workload
    devices: Devices
    recipe: Recipe
    bounds: tuple[float, float, float]
    """Memory low, likely, high on the device that trains."""

    @property
    def memory_verdict(self) -> Verdict:
        """fits: the upper bound is free; tight: the likely figure is; no: neither."""
        _, likely, high = self.bounds
        if high <= self.devices.free_bytes:
            return Verdict.FITS
        return Verdict.TIGHT if likely <= self.devices.free_bytes else Verdict.NO


def plan_of(approach: Approach, architecture: Architecture, machine: Machine, answers: Answers) -> Plan:
    """The gentlest settings of `approach` that fit; when nothing fits, the smallest job and its size."""
    recipe = choose_recipe(answers, machine, architecture)
    devices = equal_devices(machine) if approach.shards else single_device(machine)
    final = final_architecture(approach, architecture, answers)
    first = _first_choice(approach, architecture, final, devices, recipe, answers)
    work, bounds = shrink_to_fit(first, devices.free_bytes, recipe.whole("effective_batch"))
    return Plan(approach, architecture, final, work, devices, recipe, bounds)


def final_architecture(approach: Approach, architecture: Architecture, answers: Answers) -> Architecture:
    """What the approach ends with."""
    if approach.model is TargetModel.LARGER:
        return larger(architecture)
    asked = round(answers.number("target_parameters"))
    if approach.model is TargetModel.DEEPER:
        growth = asked / architecture.parameters if asked > architecture.parameters else approach.growth
        return deeper(architecture, min(growth, 8.0))
    if approach.model is TargetModel.WIDER:
        wanted = asked if asked > architecture.parameters else round(approach.growth * architecture.parameters)
        return wider(architecture, min(wanted, 64 * architecture.parameters))
    return architecture


def shrink_to_fit(
    first: Workload, free_bytes: float, effective_batch: int
) -> tuple[Workload, tuple[float, float, float]]:
    """The first of: as given, with checkpointing, then half the micro-batch again and again, whose upper bound is free.

    The effective batch is kept by accumulating. When none fits, the smallest.
    """
    batch, tried = first.batch, first
    bounds = memory_bounds(first)
    while bounds[2] > free_bytes:
        if not tried.checkpointing:
            tried = replace(tried, checkpointing=True)
        elif batch > 1:
            batch //= 2
            tried = replace(tried, batch=batch, accumulation=max(effective_batch // batch, 1))
        else:
            break
        bounds = memory_bounds(tried)
    return tried, bounds


def training_length(approach: Approach, architecture: Architecture, answers: Answers) -> int:
    """Tokens per sequence: what was asked, within the model's window; context scaling goes beyond it."""
    asked = answers.context
    window = architecture.context_length or asked
    if approach.longer:
        return asked if asked > window else 2 * window
    return min(asked, window)


def _first_choice(
    approach: Approach, base: Architecture, final: Architecture, devices: Devices, recipe: Recipe, answers: Answers
) -> Workload:
    effective = recipe.whole("effective_batch")
    adapter = approach.method is Method.ADAPTER
    long_rows = approach.longer or not adapter
    batch = 1 if approach.longer else min(recipe.whole("batch_size"), effective)
    targets = recipe.names("targets") if adapter else ALL_LINEAR
    return Workload(
        architecture=final,
        method=approach.method,
        packing=Packing4Bit.NF4_DOUBLE if approach.packed else Packing4Bit.NONE,
        batch=batch,
        sequence=training_length(approach, final, answers),
        rank=approach.rank or recipe.whole("rank"),
        targets=targets,
        checkpointing=recipe.flag("gradient_checkpointing") or long_rows,
        masked=recipe.flag("packing") and not long_rows,
        accumulation=max(effective // batch, 1),
        optimizer=approach.optimizer,
        loss=Loss.CHUNKED if approach.longer else Loss.FULL,
        trained_layers=final.layers - base.layers,
        compute_bytes=compute_bytes(devices),
        shards=max(len(devices.gpus), 1) if approach.shards else 1,
        teacher=larger(base) if approach.teacher else None,
        device=DeviceKind.CPU if devices.on_cpu else DeviceKind.GPU,
        workspace_bytes=workspace_bytes(devices),
    )


def compute_bytes(devices: Devices) -> int:
    """2 where the card computes in bfloat16; 4 on CPUs and on NVIDIA cards before Ampere, which have none."""
    if devices.on_cpu:
        return 4
    capability = devices.gpus[0].compute_capability
    return 4 if capability is not None and capability[0] < 8 else 2


def workspace_bytes(devices: Devices) -> int:
    """cuBLAS workspaces of two threads: 8.1 MiB each, 32 MiB each from Hopper on."""
    capability = devices.gpus[0].compute_capability if devices.gpus else None
    return _HOPPER_WORKSPACE_BYTES if capability is not None and capability[0] >= 9 else _SMALLER_WORKSPACE_BYTES


INSTALL_BITSANDBYTES = "Install it: pip install bitsandbytes. Or choose an approach without 4-bit weights."


def missing_library(plan: Plan, machine: Machine) -> str:
    """Why a plan cannot run for want of a library; "" when nothing is missing, or the machine is a what-if."""
    if plan.work.packed and not machine.simulated and machine.libraries.get("bitsandbytes", "unknown") is None:
        return "4-bit weights need bitsandbytes, which is not installed."
    return ""
