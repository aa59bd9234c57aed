"""The processor: its name, and the cores this process may really use.

Owns affinity and container quotas. Must not know what will run. Cores are counted, not clocked.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from engine.hardware import cgroup
from engine.hardware.machine import Cpu

_NAME_KEYS = ("model name", "Model", "Hardware", "cpu")  # x86 and most Arm; Raspberry Pi; old Arm; POWER


def parse_cpu_name(text: str) -> str:
    """The processor's name in `/proc/cpuinfo`, "" when it has none (many Arm servers)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    return next((" ".join(fields[key].split()) for key in _NAME_KEYS if fields.get(key)), "")


def quota_cores(root: Path = Path("/")) -> float | None:
    """The tightest CPU quota of this process's control groups in cores; None when nothing limits it."""
    quotas: list[float] = []
    for group in cgroup.directories(root, "cpu"):
        words = cgroup.read_words(group / "cpu.max")
        if words:
            quota = int(words[0]) if words[0].isdigit() else None
            period = int(words[1]) if len(words) > 1 and words[1].isdigit() else 100_000
        else:
            quota = cgroup.read_number(group / "cpu.cfs_quota_us")
            period = cgroup.read_number(group / "cpu.cfs_period_us") or 100_000
        if quota is not None and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def usable_cores(affinity: int, quota: float | None) -> int:
    """Cores a process with this affinity and quota can keep busy; a quota below one core still is one."""
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def read_cpu(root: Path = Path("/")) -> Cpu:
    """This machine's processor."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    name = parse_cpu_name(text) or platform.processor() or platform.machine() or "unknown processor"
    return Cpu(name, usable_cores(_affinity(), quota_cores(root)))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
