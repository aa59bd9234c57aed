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

from engine.errors import EngineError
from engine.hardware.meters import MeterReader
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter

INTERVAL_SECONDS = 1.0


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


def peak_memory(device: str) -> tuple[int, str]:
    """(bytes, "vram" or "ram"): the most this process ever held on the training device."""
    if device.startswith("cuda"):
        import torch

        # Reserved, not allocated: what the allocator keeps is what other programs cannot have.
        return torch.cuda.max_memory_reserved() + _cuda_context_bytes(), "vram"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024), "ram"


def _cuda_context_bytes() -> int:
    """What the driver holds for this process beyond the allocator's share; 0 where it cannot be told."""
    import torch

    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return max(0, int(process.usedGpuMemory) - torch.cuda.memory_reserved())
    except Exception:  # the figure is a refinement; NVML fails in many ways in containers
        return 0
    return 0
