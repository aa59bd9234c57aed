"""The meters of the run, once a second, from a thread that training never waits for; and the peak of memory.

Owns the sampling rhythm. Must not know what is being trained.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError
from engine.hardware.meters import MeterReader
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter

INTERVAL_SECONDS = 1.0
LARGEST_CONTEXT_BYTES = 2 << 30
"""More than this beyond the allocator's share is another program's."""


class MeterThread:
    """Writes a Meter event a second until stopped."""

    def __init__(self, journal: JournalWriter) -> None:
        self._journal = journal
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meters", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """No event is written after this returns."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        reader = MeterReader()
        pid = os.getpid()
        while not self._over.wait(INTERVAL_SECONDS):
            cpu_percent, ram_bytes, ram_total_bytes, gpus, temperature = reader.read(pid)
            event = ev.Meter(
                t=time.time(),
                cpu_percent=cpu_percent,
                ram_bytes=ram_bytes,
                ram_total_bytes=ram_total_bytes,
                gpus=tuple(
                    ev.GpuMeter(
                        gpu.index,
                        gpu.used_bytes,
                        gpu.total_bytes,
                        gpu.utilization_percent,
                        gpu.temperature_celsius,
                        gpu.power_watts,
                    )
                    for gpu in gpus
                ),
                temperature_celsius=temperature,
            )
            with contextlib.suppress(EngineError, OSError):  # a full disk is met and reported by the training thread
                self._journal.write(event)
        reader.close()


@dataclass(frozen=True, slots=True)
class Peak:
    """The most this process ever held on the training device; 0 where the device has no such figure."""

    process_bytes: int
    where: str
    """ "vram" or "ram"."""
    allocated_bytes: int = 0
    reserved_bytes: int = 0
    context_bytes: int = 0


def peak_of(device: str) -> Peak:
    """On a card reserved and context: what the allocator keeps is what other programs cannot have."""
    if device.startswith("cuda"):
        import torch

        reserved, context = torch.cuda.max_memory_reserved(), _cuda_context_bytes()
        return Peak(reserved + context, "vram", torch.cuda.max_memory_allocated(), reserved, context)
    return Peak(_peak_resident_bytes(), "ram")


def _peak_resident_bytes() -> int:
    """Linux's ru_maxrss begins with what the parent had when it started this process; VmHWM is this program's own."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cuda_context_bytes() -> int:
    """What the driver holds for this process beyond the allocator's share; 0 where it cannot be told.

    In a container NVML knows this process by another id, or by none. A card with one process on it is ours; on a card
    with none listed everything in use is, as long as no more than a context is unaccounted for.
    """
    import torch

    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        listed = [process for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle) if process.usedGpuMemory]
        own = [process for process in listed if process.pid == os.getpid()] or listed
        reserved = torch.cuda.memory_reserved()
        if len(own) == 1:
            return max(0, int(own[0].usedGpuMemory) - reserved)
        if not listed:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            beyond = int(memory.total - memory.free) - reserved
            return beyond if 0 < beyond <= LARGEST_CONTEXT_BYTES else 0
    except Exception:  # the figure is a refinement; NVML fails in many ways in containers
        return 0
    return 0
