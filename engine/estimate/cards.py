"""How fast and how dear the device is: peak rates, achievable share of them, watts and rent.

Owns the utilisation figures per class of device and the fall-back for cards without a profile. Must not know jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from engine.estimate.estimate import Range
from engine.hardware.gpu_profiles import GpuProfile, find_gpu_profile, load_gpu_profiles
from engine.hardware.machine import Gpu, Machine


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """One device: peak rates and the share of the arithmetic peak that training reaches."""

    name: str
    is_cpu: bool
    flops_per_second: float
    """Dense 16-bit rate of a GPU; one billion times the cores of a CPU (utilisation then is GFLOP/s per core)."""
    bytes_per_second: float
    utilisation: Range
    launch_seconds_per_layer: Range
    """Floor per layer and micro-step: kernel launches (GPU) or Python and thread hand-over (CPU)."""
    watts: float
    rent_usd_per_hour: Range | None
    source: str


_UTILISATION = {
    "ampere-datacentre": Range(0.35, 0.47, 0.57),
    "hopper": Range(0.25, 0.38, 0.52),
    "blackwell-datacentre": Range(0.20, 0.33, 0.48),
    "consumer": Range(0.30, 0.52, 0.66),
    "turing": Range(0.11, 0.16, 0.21),
    "cdna": Range(0.15, 0.30, 0.45),
    "rdna": Range(0.10, 0.22, 0.35),
    "apple": Range(0.12, 0.28, 0.42),
    "cpu": Range(6.0, 18.0, 45.0),
}
"""Share of the dense peak, from published runs: A100 torchtune 44 to 59 %, Qwen LoRA 43 to 50 %; H100 37 to 46 %;
4090 and 3090 56 to 67 %; T4 13 to 19 %. AMD, Apple and Blackwell are guesses and wide. CPU: GFLOP/s per core, measured
14 to 38 for LoRA and QLoRA in fp32 on a shared 2-core Xeon (8 layers of 192 up to 4 layers of 1,024)."""

_LAUNCH_GPU = Range(0.6e-3, 2.0e-3, 5.0e-3)
"""Qwen-1.8B at 256 tokens ran at 6 % of an A100, about 5 ms per layer on a 2023 stack."""
_LAUNCH_CPU = Range(0.5e-3, 1.5e-3, 4.0e-3)

_FALL_BACK = (
    (10, 30e12, 350e9, 160.0),
    (17, 50e12, 450e9, 220.0),
    (33, 80e12, 800e9, 350.0),
    (200, 312e12, 2e12, 400.0),
)
"""Cards without a profile: up to so many GiB -> FLOP/s, bytes/s, watts; the middle of the known cards of that size."""
_CPU_WATTS_PER_CORE = 10.0
_HOST_WATTS = 60.0


def device_speed(machine: Machine, *, gpu: Gpu | None = None) -> DeviceSpeed:
    """The device a job runs on: `gpu`, else the machine's first GPU, else its processor."""
    chosen = gpu if gpu is not None else (machine.gpus[0] if machine.gpus else None)
    return gpu_speed(chosen) if chosen is not None else cpu_speed(machine)


def cpu_speed(machine: Machine) -> DeviceSpeed:
    """A processor: GFLOP/s per core x cores, wide, replaced by the run's own figure once it runs."""
    cores = max(machine.cpu.cores, 1)
    return DeviceSpeed(
        name=machine.cpu.name or "CPU",
        is_cpu=True,
        flops_per_second=1e9 * cores,
        bytes_per_second=12e9 * min(cores, 4),
        utilisation=_UTILISATION["cpu"],
        launch_seconds_per_layer=_LAUNCH_CPU,
        watts=_HOST_WATTS + _CPU_WATTS_PER_CORE * cores,
        rent_usd_per_hour=None,
        source="6 to 45 GFLOP/s per core, measured on a shared 2-core Xeon",
    )


def gpu_speed(gpu: Gpu) -> DeviceSpeed:
    """A card from `profiles/gpus.toml`, or the middle of known cards with as much memory."""
    profile = _profile_of(gpu.profile, gpu.name)
    kind = _class_of(gpu, profile.arch if profile else "")
    if profile is None or not profile.bf16_tflops:
        flops, bandwidth, watts = _fall_back(gpu)
        rent, source = None, "no profile for this card: the middle of cards with as much memory"
    else:
        flops, bandwidth = profile.bf16_tflops * 1e12, (profile.bandwidth_gb_per_s or 300.0) * 1e9
        watts = profile.tdp_watts or 300.0
        low, high = profile.rent_low_usd_per_hour, profile.rent_high_usd_per_hour
        rent = None if low is None or high is None else Range(low, (low + high) / 2, high)
        source = f"profiles/gpus.toml: {profile.name}"
    return DeviceSpeed(
        name=gpu.name,
        is_cpu=False,
        flops_per_second=flops,
        bytes_per_second=bandwidth,
        utilisation=_UTILISATION[kind],
        launch_seconds_per_layer=_LAUNCH_GPU,
        watts=gpu.power_limit_watts or watts,
        rent_usd_per_hour=rent,
        source=source,
    )


@lru_cache(maxsize=64)
def _profile_of(profile_id: str, name: str) -> GpuProfile | None:
    for profile in load_gpu_profiles():
        if profile_id and profile.id == profile_id:
            return profile
    return find_gpu_profile(name)


def _fall_back(gpu: Gpu) -> tuple[float, float, float]:
    size = gpu.vram_bytes / 1024**3
    for up_to, flops, bandwidth, watts in _FALL_BACK:
        if size <= up_to:
            return flops, bandwidth, watts
    return _FALL_BACK[-1][1:]


def _class_of(gpu: Gpu, arch: str) -> str:
    if gpu.vendor == "apple":
        return "apple"
    if gpu.vendor == "amd":
        return "cdna" if "CDNA" in arch or "MI" in gpu.name else "rdna"
    capability = gpu.compute_capability
    if capability is None:
        words = {"Turing": "turing", "Volta": "turing", "Hopper": "hopper"}
        return words.get(arch.split(" ")[0], "ampere-datacentre" if "A100" in gpu.name else "consumer")
    major = capability[0]
    if major < 8:
        return "turing"
    if capability == (8, 0):
        return "ampere-datacentre"
    return {9: "hopper", 10: "blackwell-datacentre"}.get(major, "consumer")
