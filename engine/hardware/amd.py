"""AMD cards: amdsmi where it is installed, else `rocm-smi --json`, else the kernel's sysfs files.

Owns the three formats. Parsing is pure; `probe` reads. Integrated graphics with a sliver of memory are left out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.hardware.external import find_tool, run_tool
from engine.hardware.findings import GpuFindings, only_visible
from engine.hardware.machine import Gpu, Problem, Ram, Source
from engine.hardware.memory import read_ram
from engine.units import GIB

PCI_VENDOR = "0x1002"
ROCM_SMI = ("--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--showmaxpower", "--json")
ROCM_PATH = "/opt/rocm/bin/rocm-smi"
SHARED_MEMORY = re.compile(r"gfx115[0-9]|strix halo|strxlgen|80[456]0s", re.IGNORECASE)
"""Processors whose graphics part is meant to use the system's memory; their "VRAM" is a carve-out set in the BIOS."""
SMALLEST_VRAM_BYTES = 2 * GIB
"""Less dedicated memory than this is the graphics part of a processor, which ROCm does not train on."""


def probe(limit_seconds: float, root: Path = Path("/")) -> GpuFindings:
    """Every AMD GPU this process could train on."""
    gpus = read_amdsmi()
    if not gpus:
        tool = find_tool("rocm-smi", ROCM_PATH)
        output = run_tool([tool, *ROCM_SMI], limit_seconds) if tool else None
        if output is not None and output.timed_out:
            return GpuFindings(problems=(slow_problem(limit_seconds),))
        gpus = parse_rocm_smi(output.stdout) if output is not None else ()
    if not gpus:
        gpus = read_sysfs(root)
    usable = usable_gpus(gpus, read_ram, root)
    value = os.environ.get("HIP_VISIBLE_DEVICES", os.environ.get("ROCR_VISIBLE_DEVICES"))
    return only_visible(usable, "HIP_VISIBLE_DEVICES", value)


def slow_problem(limit_seconds: float) -> Problem:
    """rocm-smi hung."""
    return Problem(
        "amd",
        f"rocm-smi did not answer within {limit_seconds:.0f} s, so AMD cards are unknown.",
        "Run rocm-smi by hand; when it hangs there too, reboot.",
    )


def usable_gpus(gpus: tuple[Gpu, ...], host_ram: Callable[[], Ram], root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Drop integrated graphics; give processors with shared memory what the kernel lets their GPU map."""
    kept: list[Gpu] = []
    for gpu in gpus:
        if SHARED_MEMORY.search(gpu.name):
            kept.append(_shared(gpu, host_ram(), root))
        elif gpu.vram_bytes >= SMALLEST_VRAM_BYTES:
            kept.append(gpu)
    return tuple(replace(gpu, index=index) for index, gpu in enumerate(kept))


def _shared(gpu: Gpu, ram: Ram, root: Path) -> Gpu:
    """The carve-out plus the mappable system memory (GTT; half of the RAM unless the user set it)."""
    mappable = max((_number(device / "mem_info_gtt_total") for device in sysfs_devices(root)), default=0)
    mappable = mappable or ram.total_bytes // 2
    free_bytes = min(mappable, ram.available_bytes) + gpu.free_vram_bytes
    return replace(
        gpu, vram_bytes=gpu.vram_bytes + mappable, free_vram_bytes=min(free_bytes, gpu.vram_bytes + mappable),
        unified_memory=True,
    )  # fmt: skip


# ── amdsmi ────────────────────────────────────────────────────────────────────────────────────────────────────────
def read_amdsmi() -> tuple[Gpu, ...]:
    """Cards through the amdsmi module; empty when it is missing, cannot be loaded, or finds no driver."""
    try:
        import amdsmi
    except (ImportError, OSError, AttributeError, KeyError):  # it loads ROCm's library while it is imported
        return ()
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException:
        return ()
    try:
        handles = amdsmi.amdsmi_get_processor_handles()
        return tuple(_amdsmi_gpu(amdsmi, handle, index) for index, handle in enumerate(handles))
    except amdsmi.AmdSmiException:
        return ()
    finally:
        _ask(amdsmi, "amdsmi_shut_down")


def _amdsmi_gpu(amdsmi: Any, handle: Any, index: int) -> Gpu:
    asic = _ask(amdsmi, "amdsmi_get_gpu_asic_info", handle) or {}
    driver = _ask(amdsmi, "amdsmi_get_gpu_driver_info", handle) or {}
    kind = amdsmi.AmdSmiMemoryType.VRAM
    total_bytes = int(_ask(amdsmi, "amdsmi_get_gpu_memory_total", handle, kind) or 0)
    used_bytes = int(_ask(amdsmi, "amdsmi_get_gpu_memory_usage", handle, kind) or 0)
    name = str(asic.get("market_name") or "AMD GPU")
    target = str(asic.get("target_graphics_version") or "")
    return Gpu(
        index=index,
        name=name if not SHARED_MEMORY.search(target) else f"{name} ({target})",
        vendor="amd",
        vram_bytes=total_bytes,
        free_vram_bytes=max(total_bytes - used_bytes, 0),
        source=Source.AMDSMI,
        driver=str(driver.get("driver_version") or ""),
    )


def _ask(amdsmi: Any, function: str, *arguments: Any) -> Any:
    try:
        return getattr(amdsmi, function)(*arguments)
    except (amdsmi.AmdSmiException, AttributeError, TypeError):
        return None


# ── rocm-smi ──────────────────────────────────────────────────────────────────────────────────────────────────────
def parse_rocm_smi(text: str) -> tuple[Gpu, ...]:
    """`rocm-smi ... --json` -> cards. Warnings before the JSON and renamed keys of other releases are tolerated."""
    start = text.find("{")
    try:
        tree = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        return ()
    if not isinstance(tree, dict):
        return ()
    driver = str(tree.get("system", {}).get("Driver version", "")) if isinstance(tree.get("system"), dict) else ""
    gpus: list[Gpu] = []
    for key, card in tree.items():
        match = re.fullmatch(r"card:?(\d+)", key)
        if match and isinstance(card, dict):
            gpus.append(_parse_card(int(match.group(1)), {name.lower(): value for name, value in card.items()}, driver))
    return tuple(gpus)


def _parse_card(index: int, card: dict[str, Any], driver: str) -> Gpu:
    total_bytes = _integer(card.get("vram total memory (b)"))
    used_bytes = _integer(card.get("vram total used memory (b)"))
    names = [str(card.get(key, "")) for key in ("card series", "card model", "device name", "card sku")]
    readable = [name for name in names if name and name != "N/A" and not name.startswith("0x")]
    name = readable[0] if readable else "AMD GPU"
    target = str(card.get("gfx version", ""))
    power = str(card.get("max graphics package power (w)", ""))
    return Gpu(
        index=index,
        name=name if not SHARED_MEMORY.search(target) else f"{name} ({target})",
        vendor="amd",
        vram_bytes=total_bytes,
        free_vram_bytes=max(total_bytes - used_bytes, 0),
        source=Source.ROCM_SMI,
        driver=driver,
        power_limit_watts=float(power) if re.fullmatch(r"[0-9.]+", power) else None,
    )


def _integer(value: Any) -> int:
    return int(value) if str(value).isdigit() else 0


# ── sysfs ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def read_sysfs(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Cards of the amdgpu kernel driver, without any ROCm: memory, and a name where the card carries one."""
    gpus: list[Gpu] = []
    for device in sysfs_devices(root):
        total_bytes = _number(device / "mem_info_vram_total")
        used_bytes = _number(device / "mem_info_vram_used")
        gpus.append(
            Gpu(
                index=len(gpus),
                name=_word(device / "product_name") or f"AMD GPU {_word(device / 'device')}".strip(),
                vendor="amd",
                vram_bytes=total_bytes,
                free_vram_bytes=max(total_bytes - used_bytes, 0),
                source=Source.SYSFS,
            )
        )
    return tuple(gpus)


def sysfs_devices(root: Path = Path("/")) -> list[Path]:
    """The device folder of each AMD card with its own memory figures, in the order of the card numbers."""
    found: list[tuple[int, Path]] = []
    for card in (root / "sys/class/drm").glob("card*"):
        number = card.name.removeprefix("card")  # connectors are called card0-DP-1
        device = card / "device"
        if number.isdigit() and (device / "mem_info_vram_total").is_file():
            found.append((int(number), device))
    return [device for _, device in sorted(found)]


def _number(path: Path) -> int:
    return _integer(_word(path))


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
