"""Live meters of a running job, cheap enough for once a second: processor, memory, temperature, GPUs.

Owns the sampling. GPUs are read in a thread of their own, so that a slow driver delays nothing: a reading is then that
of the call before. Must not know journals or screens. Never raises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engine.hardware import amd
from engine.hardware.memory import read_ram
from engine.hardware.nvidia import load_nvml

_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")


class GpuMeter(msgspec.Struct, frozen=True):
    """One GPU now; the same fields as the journal's meter."""

    index: int
    used_bytes: int
    total_bytes: int
    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


Reading = tuple[float, int, int, tuple[GpuMeter, ...], float | None]
"""(processor percent, resident bytes, total memory bytes, GPUs, processor temperature in Celsius)."""


class MeterReader:
    """Reads one process and the machine under it; make one per run and keep it."""

    def __init__(self) -> None:
        """Nothing is opened before the first reading."""
        self._process: Any = None
        self._pid = 0
        self._ram_total_bytes = 0
        self._gpus: _GpuSampler | None = None

    def read(self, pid: int) -> Reading:
        """Meters of process `pid`: 100 percent per busy core since the last call (0 at the first), bytes, Celsius."""
        if self._gpus is None:
            self._gpus = _GpuSampler()
            self._ram_total_bytes = read_ram().total_bytes
        cpu_percent, ram_bytes = self._read_process(pid)
        return cpu_percent, ram_bytes, self._ram_total_bytes, self._gpus.latest(), read_temperature()

    def close(self) -> None:
        """Let the GPU thread end."""
        if self._gpus is not None:
            self._gpus.stop()

    def _read_process(self, pid: int) -> tuple[float, int]:
        import psutil

        try:
            if self._process is None or self._pid != pid:
                self._process, self._pid = psutil.Process(pid), pid
            with self._process.oneshot():
                return float(self._process.cpu_percent(None)), int(self._process.memory_info().rss)
        except (psutil.Error, OSError, ValueError):
            self._process = None
            return 0.0, 0


def read_temperature() -> float | None:
    """The hottest processor sensor in Celsius; None where there is none (virtual machines, macOS)."""
    import psutil

    try:
        sensors: dict[str, Any] = psutil.sensors_temperatures()
    except (AttributeError, OSError, RuntimeError, ValueError):
        return None
    for name in _CPU_SENSORS:
        values = [float(entry.current) for entry in sensors.get(name, ()) if entry.current and entry.current > 0]
        if values:
            return max(values)
    return None


class _GpuSampler:
    """Samples the GPUs when asked, in its own daemon thread, and hands out the last complete sample."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._stopped = False
        self._sample: tuple[GpuMeter, ...] = ()
        threading.Thread(target=self._run, name="gpu-meters", daemon=True).start()
        self._wanted.set()

    def latest(self) -> tuple[GpuMeter, ...]:
        """The last sample; asks for the next one."""
        self._wanted.set()
        return self._sample

    def stop(self) -> None:
        """End the thread after its current sample."""
        self._stopped = True
        self._wanted.set()

    def _run(self) -> None:
        read = gpu_reader()
        while read is not None and not self._stopped:
            self._wanted.wait()
            self._wanted.clear()
            self._sample = read()


def gpu_reader(root: Path = Path("/")) -> Callable[[], tuple[GpuMeter, ...]] | None:
    """How this machine's GPUs are sampled: NVML, else the amdgpu files; None when it has neither."""
    nvml = load_nvml()
    if nvml is not None:
        try:
            nvml.nvmlInit()
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError:
            handles = []
        if handles:
            return lambda: tuple(read_nvml_meter(nvml, handle, index) for index, handle in enumerate(handles))
    if amd.read_sysfs(root):
        return lambda: read_sysfs_meters(root)
    return None


def read_nvml_meter(nvml: Any, handle: Any, index: int) -> GpuMeter:
    """One card through NVML; what it refuses is None (or 0 bytes)."""
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    rates = _ask(nvml, "nvmlDeviceGetUtilizationRates", handle)
    temperature = _ask(nvml, "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU)
    milliwatts = _ask(nvml, "nvmlDeviceGetPowerUsage", handle)
    return GpuMeter(
        index=index,
        used_bytes=int(memory.used) if memory else 0,
        total_bytes=int(memory.total) if memory else 0,
        utilization_percent=float(rates.gpu) if rates else None,
        temperature_celsius=None if temperature is None else float(temperature),
        power_watts=None if milliwatts is None else milliwatts / 1000,
    )


def read_sysfs_meters(root: Path = Path("/")) -> tuple[GpuMeter, ...]:
    """AMD cards through the kernel's files: microwatts and millidegrees there, watts and Celsius here."""
    meters: list[GpuMeter] = []
    for device in amd.sysfs_devices(root):
        power = _sensor(device, "power1_average") or _sensor(device, "power1_input")
        temperature = _sensor(device, "temp1_input")
        meters.append(
            GpuMeter(
                index=len(meters),
                used_bytes=int(_number(device / "mem_info_vram_used") or 0),
                total_bytes=int(_number(device / "mem_info_vram_total") or 0),
                utilization_percent=_number(device / "gpu_busy_percent"),
                temperature_celsius=None if temperature is None else temperature / 1000,
                power_watts=None if power is None else power / 1e6,
            )
        )
    return tuple(meters)


def _sensor(device: Path, name: str) -> float | None:
    values = (_number(path) for path in sorted(device.glob(f"hwmon/hwmon*/{name}")))
    return next((value for value in values if value is not None), None)


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _ask(nvml: Any, function: str, *arguments: Any) -> Any:
    try:
        return getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, AttributeError, ValueError, TypeError):
        return None
