"""Running a vendor's command line tool within a time limit and killing it, with its children, when it hangs.

Owns the subprocess and its end. Must not know what any tool prints (each vendor's `parse` does).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool said. `timed_out` means that it was killed and the texts are what it had written by then."""

    command: str
    stdout: str
    stderr: str
    exit_code: int
    timed_out: bool = False

    @property
    def text(self) -> str:
        """Both streams, for messages and for pasting."""
        return "\n".join(part.strip() for part in (self.stdout, self.stderr) if part.strip())


def find_tool(name: str, *fallbacks: str) -> str | None:
    """The path of `name` on PATH, else the first of `fallbacks` that is an executable file, else None."""
    found = shutil.which(name)
    if found:
        return found
    return next((path for path in fallbacks if os.access(path, os.X_OK) and os.path.isfile(path)), None)


def run_tool(arguments: list[str], limit_seconds: float) -> ToolOutput:
    """Run a tool in its own process group for at most `limit_seconds`; never raises, never leaves a process behind."""
    command = " ".join(arguments)
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        return ToolOutput(command, "", error.strerror or str(error), 127)
    try:
        stdout, stderr = process.communicate(timeout=max(limit_seconds, 0.05))
    except subprocess.TimeoutExpired:
        _kill_group(process)
        return ToolOutput(command, "", "", -signal.SIGKILL, timed_out=True)
    return ToolOutput(command, stdout, stderr, process.returncode)


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Kill the tool and whatever it started; one that is stuck in the kernel is not waited for."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
