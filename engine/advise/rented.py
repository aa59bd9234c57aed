"""Cards of the catalogue as places for a job: does it fit there, how long, for how much.

Owns the walk over the catalogue. Must not know why the question is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.advise.amounts import cost_with, hours_with
from engine.advise.appraisal import Appraisal
from engine.advise.devices import Devices, capability_of, compute_bytes, workspace_bytes
from engine.estimate.cards import gpu_speed
from engine.estimate.cost import Tariff
from engine.estimate.estimate import Estimate, Verdict
from engine.estimate.memory import estimate_memory, memory_bounds
from engine.estimate.workload import DeviceKind, Workload
from engine.hardware.gpu_profiles import GpuProfile, load_gpu_profiles
from engine.hardware.simulate import gpu_from_profile

DRIVER_SHARE = 0.97
"""Of a rented card's memory; the driver keeps a little."""
COUNTS = (1, 2, 4, 8)
"""Cards in one rented machine."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One job on one rented machine."""

    card: GpuProfile
    count: int
    memory: Estimate
    """Bytes on each card."""
    hours: Estimate
    cost_usd: Estimate

    @property
    def name(self) -> str:
        """ "RTX 4090 24GB", "4x A100 80GB"."""
        return self.card.name if self.count == 1 else f"{self.count}x {self.card.name}"


def offers(found: Appraisal) -> tuple[Offer, ...]:
    """Every rented machine on which the job's upper bound fits, cheapest first; several cards only where it shards."""
    counts = COUNTS if found.plan.approach.shards else (1,)
    listed = [
        offer
        for card in load_gpu_profiles()
        if card.visible_bytes and card.bf16_native
        for count in counts
        if (offer := _offer(found, card, count)) is not None
    ]
    return tuple(sorted(listed, key=lambda offer: (offer.cost_usd.likely, offer.hours.likely)))


def _offer(found: Appraisal, card: GpuProfile, count: int) -> Offer | None:
    gpu = replace(gpu_from_profile(card), free_vram_bytes=int(DRIVER_SHARE * card.visible_bytes))
    device = gpu_speed(gpu)
    if device.rent_usd_per_hour is None:
        return None
    devices = Devices((gpu,) * count, gpu.free_vram_bytes, gpu.vram_bytes)
    work = on_devices(found.plan.work, devices)
    low, likely, high = memory_bounds(work)
    if devices.verdict(low, likely, high) is not Verdict.FITS:
        return None
    load = replace(found.load, tariff=Tariff(True, None, None, count))
    hours = hours_with(load, work, device)
    return Offer(card, count, estimate_memory(work), hours, cost_with(load, hours, device))


def on_devices(work: Workload, devices: Devices) -> Workload:
    """The same job computed on other cards."""
    return replace(
        work,
        device=DeviceKind.GPU,
        compute_bytes=compute_bytes(devices),
        workspace_bytes=workspace_bytes(devices),
        capability=capability_of(devices),
        shards=len(devices.gpus),
    )
