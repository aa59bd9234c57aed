"""The machine as data: GPUs, processor, memory, disks, libraries and the problems found while looking.

Owns the vocabulary of detection. Must not know how a value was read (each probe does) nor what will run on it.
All sizes are bytes. VRAM is never summed over GPUs here: whoever needs a sum says which strategy allows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Source(StrEnum):
    """Where a figure was read."""

    NVML = "nvml"
    NVIDIA_SMI = "nvidia-smi"
    AMDSMI = "amdsmi"
    ROCM_SMI = "rocm-smi"
    SYSFS = "sysfs"
    MPS = "mps"
    SYSTEM = "system"
    CGROUP = "cgroup"
    PROFILE = "profile"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One graphics processor, or one MIG slice of it."""

    index: int
    name: str
    vendor: str
    """ "nvidia", "amd" or "apple"."""
    vram_bytes: int
    free_vram_bytes: int
    source: Source
    profile: str = ""
    """The entry of `profiles/gpus.toml` this card matches; "" when unknown."""
    compute_capability: tuple[int, int] | None = None
    driver: str = ""
    power_limit_watts: float | None = None
    display_active: bool | None = None
    mig: str = ""
    """The MIG profile ("1g.10gb") of a slice, "enabled" for a parent without slices, else ""."""
    pcie_width: int | None = None
    unified_memory: bool = False
    """True where the GPU shares the system's RAM (Apple, GB10)."""


@dataclass(frozen=True, slots=True)
class Cpu:
    name: str
    cores: int
    """Cores this process may use (affinity and cgroup quota counted)."""


@dataclass(frozen=True, slots=True)
class Ram:
    total_bytes: int
    available_bytes: int
    source: Source
    """`cgroup` when a container limit is below the system's total."""


@dataclass(frozen=True, slots=True)
class Disk:
    purpose: str
    """ "runs" or "models"."""
    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that will matter later, with what to do about it."""

    where: str
    what: str
    next_step: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What a job could run on; detected, or simulated for a what-if."""

    gpus: tuple[Gpu, ...]
    cpu: Cpu
    ram: Ram
    disks: tuple[Disk, ...]
    libraries: dict[str, str | None] = field(default_factory=dict)
    """Distribution name -> version, None when not installed. Read from metadata, nothing is imported."""
    problems: tuple[Problem, ...] = ()
    simulated: bool = False
    label: str = ""
    """How screens call it: "2x RTX 4090", "no GPU, 2 cores"."""
    price_usd_per_hour: float | None = None
    """Set for a rented machine; None for one's own."""
