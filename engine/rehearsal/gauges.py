"""Reads what a step held on the real device: torch's allocator and NVML on a card, resident memory on a CPU.

Owns the readings. Must not know models.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from engine.hardware.cpu import read_cpu


@dataclass(frozen=True, slots=True)
class Reading:
    """Peaks since the last reset, in bytes; 0 where the device has no such thing."""

    allocated: int = 0
    requested: int = 0
    reserved: int = 0
    inactive_split: int = 0
    process: int = 0
    source: str = ""
    context: int = 0
    retries: int = 0


class CudaGauge:
    """One card, this process.

    `alone`: nothing else on the card comes or goes meanwhile, so its total tells where NVML does not list processes;
    `before` is that total before this process touched the card, by default what it is now.
    """

    def __init__(self, *, alone: bool, before: int = 0) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        with contextlib.suppress(Exception):  # NVML fails in many ways in containers; the allocator still answers
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handle = self._visible()
        self._before = (before or self._used()) if alone else 0

    def _visible(self) -> Any:
        name = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
        if name.isdigit():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(name))
        return self._nvml.nvmlDeviceGetHandleByUUID(name)

    def _used(self) -> int:
        if self._nvml is None or self._handle is None:
            return 0
        with contextlib.suppress(Exception):
            info = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            return int(info.total - info.free)
        return 0

    def _of_process(self) -> tuple[int, str]:
        """What the driver says this process holds, else how much more the card holds than before."""
        if self._nvml is None or self._handle is None:
            return 0, ""
        with contextlib.suppress(Exception):
            for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                if process.pid == os.getpid() and process.usedGpuMemory:
                    return int(process.usedGpuMemory), "nvml process"
        now = self._used()
        return (now - self._before, "card total") if now > self._before > 0 else (0, "")

    def reset(self) -> None:
        """Peaks begin anew."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def resting(self) -> int:
        """Allocated now."""
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    def read(self) -> Reading:
        """Peaks since the reset; the process as it is now (its segments stay until the cache is emptied)."""
        torch.cuda.synchronize()
        stats = torch.cuda.memory_stats()
        process, source = self._of_process()
        reserved = int(stats["reserved_bytes.all.peak"])
        return Reading(
            allocated=int(stats["allocated_bytes.all.peak"]),
            requested=int(stats["requested_bytes.all.peak"]),
            reserved=reserved,
            inactive_split=int(stats["inactive_split_bytes.all.peak"]),
            process=process,
            source=source,
            context=max(process - torch.cuda.memory_reserved(), 0) if process else 0,
            retries=int(stats["num_alloc_retries"]),
        )

    def describe(self) -> dict[str, Any]:
        """card, capability, driver, total."""
        properties = torch.cuda.get_device_properties(0)
        driver = ""
        if self._nvml is not None:
            with contextlib.suppress(Exception):
                driver = self._nvml.nvmlSystemGetDriverVersion()
        return {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": driver if isinstance(driver, str) else driver.decode(),
            "total": int(properties.total_memory),
        }


class CpuGauge:
    """This process's resident memory. Only Linux can forget an old peak; elsewhere the peak of the whole run counts."""

    def __init__(self) -> None:
        self._before = psutil.Process().memory_info().rss

    def reset(self) -> None:
        """Peaks begin anew."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def resting(self) -> int:
        """Resident now."""
        return int(psutil.Process().memory_info().rss)

    def read(self) -> Reading:
        """Peak resident memory since the reset."""
        peak = self.resting()
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
            peak = max(peak, int(found[1]) * 1024) if found else peak
        return Reading(process=peak, source="resident", context=self._before)

    def describe(self) -> dict[str, Any]:
        """card, total."""
        return {"card": read_cpu().name, "total": int(psutil.virtual_memory().total)}


Gauge = CudaGauge | CpuGauge


def workspace_bytes(device: torch.device) -> int:
    """What cuBLAS keeps for good once products have run forward and backward, with and without bias; 0 on a CPU.

    The forward thread and autograd's thread have a handle each, and each keeps its workspace.
    """
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    _products(device)
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated() - before


def _products(device: torch.device) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.ones(512, 512, dtype=dtype, device=device, requires_grad=True)
        weight = torch.ones(512, 512, dtype=dtype, device=device, requires_grad=True)
        bias = torch.ones(512, dtype=dtype, device=device, requires_grad=True)
        torch.nn.functional.linear(x @ weight, weight, bias).sum().backward()  # type: ignore[no-untyped-call]
