"""What a job may use of a machine: one card, equal cards, or the processor, and what is free of it in words.

Owns that choice and the verdict of an upper bound against free memory. Must not know jobs.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.estimate.estimate import Verdict
from engine.hardware.machine import Gpu, Machine
from engine.units import format_bytes

_WORKSPACE_BYTES = 2 * 32 * 1024**2
_WORTH_NAMING_BYTES = 64 * 1024**2
"""Less than this in use by others is a driver's own."""


@dataclass(frozen=True, slots=True)
class Devices:
    """What a job may use."""

    gpus: tuple[Gpu, ...]
    """Equal cards; empty on a machine without a GPU."""
    free_bytes: int
    """Free memory of the fullest of them, or available RAM."""
    total_bytes: int = 0
    """All memory of that one, or all RAM; 0 when nobody said."""
    packs: bool = True
    """Whether 4-bit weights can be loaded: the library for them is here, or the machine is a what-if."""

    @property
    def on_cpu(self) -> bool:
        """True when there is no GPU."""
        return not self.gpus

    def verdict(self, low_bytes: float, likely_bytes: float, high_bytes: float) -> Verdict:
        """fits: the upper bound is free; tight: the low end is (on a CPU the likely figure); no: neither.

        On a card torch gives unused memory back before it fails; on a CPU the system would swap.
        """
        if high_bytes <= self.free_bytes:
            return Verdict.FITS
        return Verdict.TIGHT if self.least(low_bytes, likely_bytes) <= self.free_bytes else Verdict.NO

    def least(self, low_bytes: float, likely_bytes: float) -> float:
        """What must be free for the job to run at all."""
        return likely_bytes if self.on_cpu else low_bytes


def single_device(machine: Machine) -> Devices:
    """The GPU with the most free memory, else the processor."""
    if not machine.gpus:
        return Devices((), machine.ram.available_bytes, machine.ram.total_bytes, has_packing(machine))
    best = max(machine.gpus, key=lambda gpu: gpu.free_vram_bytes)
    return Devices((best,), best.free_vram_bytes, best.vram_bytes, has_packing(machine))


def equal_devices(machine: Machine) -> Devices:
    """All cards of the same name as the best one: a sharded job needs equal cards."""
    best = single_device(machine)
    if best.on_cpu:
        return best
    group = tuple(gpu for gpu in machine.gpus if gpu.name == best.gpus[0].name)
    fullest = min(group, key=lambda gpu: gpu.free_vram_bytes)
    return Devices(group, fullest.free_vram_bytes, fullest.vram_bytes, has_packing(machine))


def has_packing(machine: Machine) -> bool:
    """Whether bitsandbytes is installed; on what-if machines, and where nobody looked, it counts as installed."""
    return machine.simulated or machine.libraries.get("bitsandbytes", "unknown") is not None


def compute_bytes(devices: Devices) -> int:
    """2 where the card computes in bfloat16; 4 on CPUs and on NVIDIA cards before Ampere, which have none."""
    if devices.on_cpu:
        return 4
    capability = devices.gpus[0].compute_capability
    return 4 if capability is not None and capability[0] < 8 else 2


def workspace_bytes(devices: Devices) -> int:
    """cuBLAS workspaces of two threads, 32 MiB each: the worker sets `CUBLAS_WORKSPACE_CONFIG=:4096:8` on every card
    (65 MiB measured on an H200). None on a CPU."""
    return 0 if devices.on_cpu else _WORKSPACE_BYTES


def capability_of(devices: Devices) -> int:
    """Major compute capability of the cards; 0 when unknown."""
    capability = devices.gpus[0].compute_capability if devices.gpus else None
    return capability[0] if capability is not None else 0


def free_words(devices: Devices) -> str:
    """ "22.1 GiB of 24.0 GiB are free on this card, 1.9 GiB in use by others"."""
    if devices.on_cpu:
        what = "RAM are free"
    else:
        what = "are free on each card" if len(devices.gpus) > 1 else "are free on this card"
    used = devices.total_bytes - devices.free_bytes
    if not devices.total_bytes or used < _WORTH_NAMING_BYTES:
        return f"{format_bytes(devices.free_bytes)} {what}"
    return (
        f"{format_bytes(devices.free_bytes)} of {format_bytes(devices.total_bytes)} {what}, "
        f"{format_bytes(used)} in use by others"
    )
