"""How a machine is called on screens: "2x RTX 4090", "A100-SXM4-80GB + RTX 3060", "no GPU, 2 cores".

Owns the short names. Must not know screens or widths.
"""

from __future__ import annotations

import re
from collections import Counter

from engine.hardware.machine import Cpu, Gpu

_PREFIXES = re.compile(r"^(NVIDIA|AMD|GeForce|Radeon|Instinct|Tesla)\s+", re.IGNORECASE)


def short_name(name: str) -> str:
    """ "NVIDIA GeForce RTX 4090" -> "RTX 4090"; a MIG slice keeps its profile."""
    shorter = name.strip()
    while (stripped := _PREFIXES.sub("", shorter, count=1)) != shorter and stripped:
        shorter = stripped
    return shorter.removesuffix(" Generation")


def machine_label(gpus: tuple[Gpu, ...], cpu: Cpu) -> str:
    """The machine in a few words."""
    if not gpus:
        return f"no GPU, {cpu.cores} core{'s' if cpu.cores != 1 else ''}"
    counts = Counter(short_name(gpu.name) for gpu in gpus)
    return " + ".join(name if count == 1 else f"{count}x {name}" for name, count in counts.items())


def card_details(gpu: Gpu) -> str:
    """What else is known of a card, in a few words: "driver 580.65, compute 8.9, 450 W, PCIe x16, drives a display"."""
    parts = [
        f"driver {gpu.driver}" if gpu.driver else "",
        "compute {}.{}".format(*gpu.compute_capability) if gpu.compute_capability else "",
        f"{gpu.power_limit_watts:.0f} W" if gpu.power_limit_watts else "",
        f"PCIe x{gpu.pcie_width}" if gpu.pcie_width else "",
        f"MIG {gpu.mig}" if gpu.mig else "",
        "drives a display" if gpu.display_active else "",
        "memory shared with the system" if gpu.unified_memory else "",
    ]
    return ", ".join(part for part in parts if part)
