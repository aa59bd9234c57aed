"""Apple silicon: the GPU shares the system's memory, and macOS lets it use a part of it.

Owns the sysctl and system_profiler formats. Parsing is pure; `probe` runs the tools. No torch is imported.
"""

from __future__ import annotations

import json
import sys
import time

from engine.hardware.external import run_tool
from engine.hardware.findings import GpuFindings
from engine.hardware.machine import Gpu, Ram, Source
from engine.hardware.memory import read_ram
from engine.units import GIB, MIB

SYSCTL = ("sysctl", "hw.memsize", "machdep.cpu.brand_string", "iogpu.wired_limit_mb")
PROFILER = ("system_profiler", "SPDisplaysDataType", "-json")


def probe(limit_seconds: float) -> GpuFindings:
    """The GPU of an Apple silicon Mac; nothing on any other machine."""
    if sys.platform != "darwin":
        return GpuFindings()
    deadline = time.monotonic() + limit_seconds
    facts = run_tool(list(SYSCTL), deadline - time.monotonic()).stdout
    displays = run_tool(list(PROFILER), deadline - time.monotonic()).stdout
    return GpuFindings(parse(facts, displays, read_ram()))


def working_set_bytes(total_bytes: int, wired_limit_mib: int = 0) -> int:
    """How much of the system's memory Metal recommends to use.

    The user's own limit (iogpu.wired_limit_mb) where set; else two thirds up to 16 GiB and 74 % above, the lower end of
    what Metal printed on machines of 16, 18, 32, 36 and 48 GiB.
    """
    if wired_limit_mib > 0:
        return min(wired_limit_mib * MIB, total_bytes)
    return total_bytes * 2 // 3 if total_bytes <= 16 * GIB else total_bytes * 74 // 100


def parse(facts: str, displays: str, ram: Ram) -> tuple[Gpu, ...]:
    """`sysctl` lines and `system_profiler SPDisplaysDataType -json` -> the built-in GPU; Intel Macs have none."""
    values = dict(line.split(": ", 1) for line in facts.splitlines() if ": " in line)
    name = values.get("machdep.cpu.brand_string", "").strip()
    if not name.startswith("Apple"):
        return ()
    total_bytes = int(values["hw.memsize"]) if values.get("hw.memsize", "").isdigit() else ram.total_bytes
    limit = values.get("iogpu.wired_limit_mb", "")
    usable_bytes = working_set_bytes(total_bytes, int(limit) if limit.isdigit() else 0)
    return (
        Gpu(
            index=0,
            name=_gpu_name(displays) or name,
            vendor="apple",
            vram_bytes=usable_bytes,
            free_vram_bytes=min(usable_bytes, ram.available_bytes),
            source=Source.MPS,
            display_active=True,
            unified_memory=True,
        ),
    )


def _gpu_name(displays: str) -> str:
    try:
        cards = json.loads(displays)["SPDisplaysDataType"]
    except (ValueError, KeyError, TypeError):
        return ""
    names = [str(card.get("sppci_model", "")) for card in cards if isinstance(card, dict)]
    return next((name for name in names if name.startswith("Apple")), "")
