"""Is that process still the one we started? Process id, start time and boot together say so; the id alone never.

Owns reading them from the operating system. Must not know runs. Linux reads /proc; elsewhere psutil, imported late.
On Linux the start time counts from boot, so setting the clock does not make a living process look dead.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

START_TOLERANCE_SECONDS = 0.05 if sys.platform == "linux" else 2.0

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def current_boot_id() -> str:
    """Names this boot of this machine and, on Linux, the process-id namespace (a container has its own)."""
    with contextlib.suppress(OSError):
        return f"{_BOOT_ID.read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            answer = subprocess.run(["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, timeout=5)
            return answer.stdout.decode().strip()
    return ""


def host_name() -> str:
    """For people; never compared."""
    return socket.gethostname()


def _stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; the name before them may hold spaces and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def process_start(pid: int) -> float | None:
    """When the process began, in seconds (since boot on Linux, else since 1970); None when it is gone or a zombie."""
    if pid <= 0:
        return None
    if sys.platform == "linux":
        fields = _stat_fields(pid)
        return None if fields is None or fields[0] in "ZX" else int(fields[19]) / _TICKS_PER_SECOND
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def cpu_seconds(pid: int) -> float:
    """User and system time of the process so far; 0 when it is gone."""
    if sys.platform == "linux":
        fields = _stat_fields(pid)
        return 0.0 if fields is None else (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
    import psutil

    try:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    except psutil.Error:
        return 0.0


def is_alive(pid: int, process_start_seconds: float, boot_id: str) -> bool:
    """True only for the very process that was recorded. Of another boot or machine nothing is known: False."""
    if boot_id != current_boot_id():
        return False
    started = process_start(pid)
    return started is not None and abs(started - process_start_seconds) <= START_TOLERANCE_SECONDS
