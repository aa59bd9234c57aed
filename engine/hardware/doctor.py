"""The machine as the `doctor` command reports it: plain data for JSON, and raw tool outputs for pasting.

Owns the report's keys, which scripts rely on. Must not know how it is printed. Sizes are bytes.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from typing import Any

from engine.hardware.amd import ROCM_PATH
from engine.hardware.external import find_tool, run_tool
from engine.hardware.machine import Disk, Gpu, Machine
from engine.hardware.nvidia_smi import WSL_PATH


def report(machine: Machine) -> dict[str, Any]:
    """`gpus[] cpu ram disk libraries problems[]`, then more: `disks`, `label`, `simulated`, `platform`, `python`."""
    runs = next((disk for disk in machine.disks if disk.purpose == "runs"), None)
    return {
        "gpus": [_gpu(gpu) for gpu in machine.gpus],
        "cpu": {"name": machine.cpu.name, "cores": machine.cpu.cores},
        "ram": {
            "total_bytes": machine.ram.total_bytes,
            "available_bytes": machine.ram.available_bytes,
            "source": machine.ram.source.value,
        },
        "disk": _disk(runs) if runs else {"path": "", "free_bytes": 0},
        "libraries": dict(machine.libraries),
        "problems": [asdict(problem) for problem in machine.problems],
        "disks": [{"purpose": disk.purpose, **_disk(disk)} for disk in machine.disks],
        "label": machine.label,
        "simulated": machine.simulated,
        "price_usd_per_hour": machine.price_usd_per_hour,
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _gpu(gpu: Gpu) -> dict[str, Any]:
    """The contract's five keys first, then every other figure."""
    entry = asdict(gpu)
    first = {key: entry.pop(key) for key in ("name", "vendor", "vram_bytes", "free_vram_bytes")}
    entry.pop("source")
    return {**first, "source": gpu.source.value, **entry}


def _disk(disk: Disk) -> dict[str, Any]:
    return {"path": disk.path, "free_bytes": disk.free_bytes, "total_bytes": disk.total_bytes}


def raw_outputs(limit_seconds: float = 5.0) -> dict[str, str]:
    """What the vendors' tools print here, by command, for pasting into a report; each is given `limit_seconds`."""
    commands: list[list[str]] = []
    if tool := find_tool("nvidia-smi", WSL_PATH):
        commands += [[tool], [tool, "-L"]]
    if tool := find_tool("rocm-smi", ROCM_PATH):
        commands.append([tool])
    if sys.platform == "darwin":
        commands.append(["system_profiler", "SPDisplaysDataType"])
    outputs: dict[str, str] = {}
    for command in commands:
        output = run_tool(command, limit_seconds)
        outputs[output.command] = "(did not answer in time and was stopped)" if output.timed_out else output.text
    return outputs
