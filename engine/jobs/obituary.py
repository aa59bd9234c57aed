"""How a worker ended and why, from what can still be seen: exit code, journal, log, the kernel's counters.

Owns the diagnosis. Must not supervise. A worker killed for memory cannot say so itself, which is the reason for this.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from engine.jobs import checkpoints, layout
from engine.jobs import events as ev
from engine.jobs.journal import read_tail_events
from engine.units import format_bytes

FAILED_EXIT_CODE = 5
"""The worker failed and its End event says why."""

_LOG_BYTES = 16 * 1024
_NEARLY_ALL = 0.85
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


def not_started(error: OSError) -> ev.WorkerExit:
    """The worker's program could not even be run."""
    cause = error.strerror or str(error)
    return ev.WorkerExit(t=time.time(), exit_code=127, what="The worker could not be started.", cause=cause)


@dataclass(slots=True)
class Scene:
    """What was seen before and while the worker lived."""

    run_dir: Path
    journal_offset: int
    log_offset: int
    out_of_memory_kills: dict[str, int]
    worker_pid: int = 0
    last_resident_bytes: int = 0
    memory_limit_bytes: int = field(default=0)

    @classmethod
    def before(cls, run_dir: Path) -> Scene:
        """Look just before the worker starts."""
        return cls(
            run_dir,
            _size(run_dir / layout.JOURNAL),
            _size(run_dir / layout.WORKER_LOG),
            out_of_memory_kills(),
            memory_limit_bytes=_memory_limit_bytes(),
        )

    def look(self) -> None:
        """Remember how much memory the worker holds; afterwards nobody can tell."""
        with contextlib.suppress(OSError, ValueError):
            match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.worker_pid}/status").read_text())
            if match:
                self.last_resident_bytes = int(match.group(1)) * 1024

    def diagnose(self, exit_code: int) -> tuple[ev.WorkerExit, str]:
        """`exit_code` as Popen gives it (negative: a signal). Returns the event and the outcome for RunnerEnd."""
        end = self._last_word()
        number = max(-exit_code, 0)
        if exit_code in (0, FAILED_EXIT_CODE) and end is not None:
            report = ev.WorkerExit(
                t=time.time(), exit_code=exit_code, what=end.what, cause=end.cause, next_step=end.next_step
            )
            return report, end.outcome
        what, cause = self._killed(number) if number else self._exited(exit_code)
        report = ev.WorkerExit(
            t=time.time(), exit_code=exit_code, signal=number, what=what, cause=cause, next_step=self._next_step()
        )
        if end is not None and end.outcome != "failed":
            return report, end.outcome  # it had finished its work before it fell over
        return report, "killed" if number else "failed"

    def _last_word(self) -> ev.End | None:
        events = read_tail_events(self.run_dir / layout.JOURNAL, max_bytes=64 * 1024, after=self.journal_offset)
        return next((event for event in reversed(events) if isinstance(event, ev.End)), None)

    def _killed(self, number: int) -> tuple[str, str]:
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        if number == signal.SIGKILL:
            return self._killed_hard()
        if number in _CRASHES:
            return f"The worker crashed ({name}).", self._log_cause("Native code (a driver or a library) failed.")
        return f"The worker was ended from outside ({name}).", f"Somebody sent it {name}."

    def kernel_killed(self) -> bool:
        """Whether the kernel has ended some process for lack of memory since this look."""
        return any(count > self.out_of_memory_kills.get(name, 0) for name, count in out_of_memory_kills().items())

    def _killed_hard(self) -> tuple[str, str]:
        held = f" It held {format_bytes(self.last_resident_bytes)}" if self.last_resident_bytes else ""
        of = f" of {format_bytes(self.memory_limit_bytes)}" if self.memory_limit_bytes and held else ""
        if self.kernel_killed():
            memory = f"{held}{of}." if held else ""
            return "The worker ran out of memory.", f"out of memory: the kernel killed it.{memory}"
        if self.memory_limit_bytes and self.last_resident_bytes > _NEARLY_ALL * self.memory_limit_bytes:
            return "The worker was killed.", f"killed (kill -9), probably for lack of memory.{held}{of}."
        return "The worker was killed.", "killed (kill -9)"

    def _exited(self, exit_code: int) -> tuple[str, str]:
        if exit_code == 0:
            return "The worker left without saying how the run ended.", self._log_cause("It exited with code 0.")
        return f"The worker failed with exit code {exit_code}.", self._log_cause("It wrote nothing to worker.log.")

    def _log_cause(self, otherwise: str) -> str:
        """The last lines this worker wrote to its log."""
        tail = layout.read_tail(self.run_dir / layout.WORKER_LOG, max_bytes=_LOG_BYTES, after=self.log_offset)
        lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:])[-600:] if lines else otherwise

    def _next_step(self) -> str:
        step = checkpoints.newest_step(self.run_dir)
        where = f"resume from step {step}" if step else "start it again; there was no checkpoint yet"
        return f"Press r to {where} (or `scaler-wizard resume {self.run_dir.name}`)."


def out_of_memory_kills() -> dict[str, int]:
    """Counters of out-of-memory kills: of our control group (v2 or v1) and, failing that, of the whole machine."""
    counters: dict[str, int] = {}
    for path in (*_cgroup_files("memory.events", "memory.oom_control"), Path("/proc/vmstat")):
        with contextlib.suppress(OSError):
            match = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
            if match:
                counters[str(path)] = int(match.group(1))
    return counters


def _cgroup_files(version_2: str, version_1: str) -> list[Path]:
    """Where a file of our memory control group may be, for the three usual mounts."""
    files = [Path("/sys/fs/cgroup") / version_2, Path("/sys/fs/cgroup/memory") / version_1]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                files.append(Path("/sys/fs/cgroup") / group.lstrip("/") / version_2)
            elif "memory" in controllers.split(","):
                files.append(Path("/sys/fs/cgroup/memory") / group.lstrip("/") / version_1)
    return files


def _memory_limit_bytes() -> int:
    """The smallest of the control group's limit and the machine's memory; 0 when unknown."""
    limits: list[int] = []
    for path in _cgroup_files("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    with contextlib.suppress(OSError):
        match = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if match:
            limits.append(int(match.group(1)) * 1024)
    return min(limits, default=0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
