"""How fast and how dear the device is: peak rates, achievable share of them, watts and rent.

Owns the utilisation figures per class of device and the fall-back for cards without a profile. Must not know jobs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from engine.estimate.estimate import Range
from engine.hardware.gpu_profiles import GpuProfile, find_gpu_profile, load_gpu_profiles
from engine.hardware.machine import Gpu, Machine
from engine.hardware.prices import PriceStamp, price_stamp


@dataclass(frozen=True, slots=True)
class CardClass:
    """What cards of one kind reach of their paper figures."""

    matmul_share: Range
    """Of the dense 16-bit peak, for large multiplications; launches and bandwidth are counted apart."""
    fp32_share: float
    """fp32 multiplications as a share of the 16-bit peak."""
    attention_share: float
    """Of `matmul_share`, for fused attention."""
    peer_bytes_per_second: Range
    """To each other card: PCIe without peer access, or NVLink."""


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """One device: peak rates and the shares of them that training reaches."""

    name: str
    is_cpu: bool
    flops_per_second: float
    """Dense 16-bit rate of a GPU; one billion times the cores of a CPU (its share then is GFLOP/s per core)."""
    bytes_per_second: float
    kind: CardClass
    kernel_seconds: Range
    """Host time to launch one kernel from Python; on a CPU the overhead of one layer's pass."""
    watts: float
    rent_usd_per_hour: Range | None
    source: str
    rent_source: str = ""
    """Where the price is from, and of which day."""


BANDWIDTH_SHARE = Range(0.55, 0.80, 0.90)
"""Of the memory bandwidth, for elementwise kernels."""
LINK_BYTES_PER_SECOND = Range(6e9, 12e9, 24e9)
"""Host to card: PCIe 3 x16 with pageable memory, PCIe 4 x16 half used, PCIe 4 x16 pinned."""

_PCIE = Range(2.5e9, 4e9, 12e9)
"""Between cards through host memory: 7B FSDP on 2 x 3090 without peer access moved 3 to 5 GB/s."""
_NVLINK = Range(20e9, 180e9, 350e9)
"""PCIe cards of a data centre at worst."""

_CLASSES = {
    "ampere-datacentre": CardClass(Range(0.50, 0.68, 0.80), 0.044, 1.0, _NVLINK),
    "hopper": CardClass(Range(0.40, 0.60, 0.78), 0.045, 1.0, _NVLINK),
    "blackwell-datacentre": CardClass(Range(0.33, 0.52, 0.72), 0.025, 1.0, _NVLINK),
    "geforce": CardClass(Range(0.60, 0.86, 1.05), 0.30, 1.0, _PCIE),
    "workstation": CardClass(Range(0.30, 0.55, 0.82), 0.17, 1.0, _PCIE),
    "turing": CardClass(Range(0.33, 0.50, 0.68), 0.09, 0.5, _PCIE),
    "t4": CardClass(Range(0.25, 0.34, 0.44), 0.075, 0.4, _PCIE),
    "cdna": CardClass(Range(0.22, 0.42, 0.65), 0.10, 0.7, _NVLINK),
    "rdna": CardClass(Range(0.14, 0.30, 0.50), 0.25, 0.5, _PCIE),
    "apple": CardClass(Range(0.22, 0.45, 0.65), 0.45, 0.6, _PCIE),
    "cpu": CardClass(Range(6.0, 18.0, 45.0), 1.0, 1.0, _PCIE),
}
"""Fitted to what is left of published steps after bandwidth and launches are counted: A100 on torchtune, Qwen and
LLaMA-Factory, 3090 and 4090 on QLoRA+FSDP (boost clocks above the paper's), T4 (70 W, and attention without a flash
kernel) on fitcheck-llm. Workstation cards are held back by their power limits; Hopper, Blackwell, AMD, Apple and
Turing beyond the T4 are judged from llm-foundry's and NeMo's rates or not at all, and wide. CPU: GFLOP/s per core,
measured 14 to 38 for LoRA and QLoRA in fp32 on a shared 2-core Xeon (8 layers of 192 up to 4 layers of 1,024)."""

_KERNEL_SECONDS = Range(5e-6, 14e-6, 50e-6)
"""Qwen-1.8B at 256 tokens took 5 ms per layer, 270 launches, on a 2023 stack; a fast host needs a third of that. An
H200 behind a virtual machine whose cores had other work took up to 45 us (`profiles/measured`)."""
_LAYER_SECONDS_CPU = Range(0.5e-3, 1.5e-3, 4.0e-3)

_FALL_BACK = (
    (10, 30e12, 350e9, 160.0),
    (17, 50e12, 450e9, 220.0),
    (33, 80e12, 800e9, 350.0),
    (200, 312e12, 2e12, 400.0),
)
"""Cards without a profile: up to so many GiB -> FLOP/s, bytes/s, watts; the middle of the known cards of that size."""
_CPU_WATTS_PER_CORE = 10.0
_HOST_WATTS = 60.0


ONE_OFFER = Range(0.7, 1.0, 1.6)
"""How far prices spread around the only one that was seen; cards with several offers spread by 1.4 to 3.3."""


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
        kind=_CLASSES["cpu"],
        kernel_seconds=_LAYER_SECONDS_CPU,
        watts=_HOST_WATTS + _CPU_WATTS_PER_CORE * cores,
        rent_usd_per_hour=None,
        source="6 to 45 GFLOP/s per core, measured on a shared 2-core Xeon",
    )


def gpu_speed(gpu: Gpu) -> DeviceSpeed:
    """A card from `profiles/gpus.toml`, or the middle of known cards with as much memory."""
    return _gpu_speed(gpu, price_stamp())


@lru_cache(maxsize=512)
def _gpu_speed(gpu: Gpu, prices: PriceStamp) -> DeviceSpeed:
    """`prices` is only part of the key: a refreshed list makes new profiles."""
    del prices
    profile = _profile_of(gpu.profile, gpu.name)
    kind = _class_of(gpu, profile.arch if profile else "")
    if profile is None or not profile.bf16_tflops:
        flops, bandwidth, watts = _fall_back(gpu)
        source = "no profile for this card: the middle of cards with as much memory"
    else:
        flops, bandwidth = profile.bf16_tflops * 1e12, (profile.bandwidth_gb_per_s or 300.0) * 1e9
        watts = profile.tdp_watts or 300.0
        source = f"profiles/gpus.toml: {profile.name}"
    return DeviceSpeed(
        name=gpu.name,
        is_cpu=False,
        flops_per_second=flops,
        bytes_per_second=bandwidth,
        kind=_CLASSES[kind],
        kernel_seconds=_KERNEL_SECONDS,
        watts=gpu.power_limit_watts or watts,
        rent_usd_per_hour=_rent_of(profile),
        source=source,
        rent_source=f"{profile.rent_source}, read on {profile.rent_read_on}" if profile else "",
    )


def _rent_of(profile: GpuProfile | None) -> Range | None:
    if profile is None or profile.rent_low_usd_per_hour is None or profile.rent_high_usd_per_hour is None:
        return None
    typical = profile.rent_typical_usd_per_hour or profile.rent_high_usd_per_hour
    if profile.rent_low_usd_per_hour == profile.rent_high_usd_per_hour:
        return Range(ONE_OFFER.low * typical, typical, ONE_OFFER.high * typical)
    return Range(profile.rent_low_usd_per_hour, typical, profile.rent_high_usd_per_hour)


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
    if "T4" in gpu.name.upper().replace("-", " ").split():
        return "t4"
    geforce = re.search(r"RTX\s*(?:PRO\s*)?[2345]0[5-9]0", gpu.name.upper()) is not None
    capability = gpu.compute_capability
    if capability is None:
        words = {"Turing": "turing", "Volta": "turing", "Hopper": "hopper"}
        other = "ampere-datacentre" if "A100" in gpu.name else "geforce" if geforce else "workstation"
        return words.get(arch.split(" ")[0], other)
    major = capability[0]
    if major < 8:
        return "turing"
    if capability == (8, 0):
        return "ampere-datacentre"
    return {9: "hopper", 10: "blackwell-datacentre"}.get(major, "geforce" if geforce else "workstation")
