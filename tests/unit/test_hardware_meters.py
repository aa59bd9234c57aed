"""Meters: this very process, a process that is gone, NVML figures, and the kernel's files for AMD."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.hardware import meters
from engine.hardware.meters import GpuMeter, MeterReader, gpu_reader, read_nvml_meter, read_sysfs_meters
from engine.jobs import events
from engine.units import GIB


def test_a_busy_process_is_seen_busy_and_its_memory_is_counted() -> None:
    reader = MeterReader()
    reader.read(os.getpid())
    deadline = time.monotonic() + 20
    cpu_percent = 0.0
    while cpu_percent < 5:
        assert time.monotonic() < deadline
        sum(range(1_000_000))
        cpu_percent, ram_bytes, ram_total_bytes, _, _ = reader.read(os.getpid())
    assert 10_000_000 < ram_bytes < ram_total_bytes
    reader.close()


def test_a_process_that_is_gone_reads_as_zero() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    reader = MeterReader()
    cpu_percent, ram_bytes, ram_total_bytes, _, _ = reader.read(child.pid)
    assert (cpu_percent, ram_bytes) == (0.0, 0)
    assert ram_total_bytes > 0
    reader.close()


def test_a_hanging_driver_does_not_hold_up_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(meters, "gpu_reader", lambda: release.wait(60) and None)
    try:
        reader = MeterReader()
        started = time.monotonic()
        assert reader.read(os.getpid())[3] == ()
        assert time.monotonic() - started < 30
    finally:
        release.set()


def test_gpu_samples_arrive_with_the_next_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = (GpuMeter(0, GIB, 24 * GIB, 97.0, 61.0, 401.5),)
    monkeypatch.setattr(meters, "gpu_reader", lambda: lambda: sample)
    reader = MeterReader()
    deadline = time.monotonic() + 10
    while reader.read(os.getpid())[3] != sample:
        assert time.monotonic() < deadline
        os.sched_yield()
    reader.close()


def test_the_meter_has_the_fields_of_the_journals_meter() -> None:
    assert GpuMeter.__struct_fields__ == events.GpuMeter.__struct_fields__


def test_refused_nvml_figures_are_none() -> None:
    class Fake:
        NVMLError = ValueError
        NVML_TEMPERATURE_GPU = 0

        def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
            return SimpleNamespace(used=3 * GIB, total=24 * GIB)

        def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
            return SimpleNamespace(gpu=88, memory=40)

        def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
            raise ValueError("not supported")

        def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
            return 401_500

    assert read_nvml_meter(Fake(), object(), 1) == GpuMeter(1, 3 * GIB, 24 * GIB, 88.0, None, 401.5)


def test_amd_cards_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    device = tmp_path / "sys/class/drm/card0/device"
    (device / "hwmon/hwmon3").mkdir(parents=True)
    for name, text in {
        "mem_info_vram_total": f"{16 * GIB}", "mem_info_vram_used": f"{2 * GIB}", "gpu_busy_percent": "42",
        "hwmon/hwmon3/temp1_input": "55000", "hwmon/hwmon3/power1_average": "211000000",
    }.items():  # fmt: skip
        (device / name).write_text(text + "\n")
    assert read_sysfs_meters(tmp_path) == (GpuMeter(0, 2 * GIB, 16 * GIB, 42.0, 55.0, 211.0),)
    (device / "gpu_busy_percent").unlink()
    assert read_sysfs_meters(tmp_path)[0].utilization_percent is None


def test_a_machine_without_cards_has_no_gpu_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "load_nvml", lambda: None)
    assert gpu_reader(tmp_path) is None
