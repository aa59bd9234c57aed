"""The NVIDIA probe: NVML first, nvidia-smi where NVML cannot be loaded, and the PCI bus to notice a missing driver.

Owns the order of the ways. Must not know NVML's calls nor the tool's format (`nvml.py`, `nvidia_smi.py` do).
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from engine.hardware import nvidia_smi
from engine.hardware.findings import GpuFindings, only_visible
from engine.hardware.machine import Problem
from engine.hardware.memory import read_ram
from engine.hardware.nvml import read_nvml
from engine.hardware.pci import has_display_controller

PCI_VENDOR = "0x10de"


def probe(limit_seconds: float, root: Path = Path("/")) -> GpuFindings:
    """Every NVIDIA GPU this process could train on, and what stands in the way of the others."""
    started = time.monotonic()
    nvml = load_nvml()
    findings = read_nvml(nvml, read_ram) if nvml is not None else None
    if findings is None or not (findings.gpus or findings.problems):
        left = limit_seconds - (time.monotonic() - started)
        findings = nvidia_smi.read(left, read_ram) or findings or GpuFindings()
    if not findings.gpus and not findings.problems and has_display_controller(PCI_VENDOR, root):
        return GpuFindings(problems=(missing_driver_problem(),))
    visible = only_visible(findings.gpus, "CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    return replace(findings, gpus=visible.gpus, problems=findings.problems + visible.problems)


def load_nvml() -> ModuleType | None:
    """The pynvml module (distribution nvidia-ml-py); None when it is not installed or cannot be imported."""
    try:
        import pynvml
    except (ImportError, OSError, SyntaxError):
        return None
    module: ModuleType = pynvml
    return module


def missing_driver_problem() -> Problem:
    """A card sits on the bus, but nothing drives it."""
    return Problem(
        "nvidia",
        "There is an NVIDIA card in this machine, but no working NVIDIA driver.",
        "Install NVIDIA's driver for your system; in a container, start it with GPU access (--gpus all).",
    )
