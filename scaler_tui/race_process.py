"""The process that races scaling methods or searches factors: `extend --race --json-lines`, its lines and its end.

Owns that process. Its log file makes what was measured outlast a stop. Must not know Textual: the screens' feed and
`--plain` both read it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

from engine.errors import EngineError, ExitCode
from engine.jobs.race_lines import Line, decode_line
from scaler_tui.window import RaceKey

PROGRAM = (sys.executable, "-m", "scaler_tui")
PATIENCE_SECONDS = 3.0
"""A process that was asked to end gets this long."""


class RaceProcess:
    """One process; `lines` reads it to its end, `end` stops it from any thread."""

    def __init__(self, key: RaceKey) -> None:
        self.key = key
        self.error: EngineError | None = None
        """Why it failed, once `lines` is through."""
        self.ended = threading.Event()
        """It was asked to end."""
        self._process: subprocess.Popen[bytes] | None = None

    def lines(self) -> Iterator[Line]:
        """What it prints, as it comes; what its log already holds comes first."""
        try:
            yield from self._lines()
        except OSError as failure:
            self.error = EngineError("twin.failed", "`extend` could not be started.", cause=str(failure))

    def _lines(self) -> Iterator[Line]:
        self.key.log.parent.mkdir(parents=True, exist_ok=True)
        command = [*PROGRAM, *self.key.words, "--log", str(self.key.log)]
        with tempfile.TemporaryFile() as words:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, start_new_session=True
            )
            self._process = process
            if self.ended.is_set():
                self.end()
            assert process.stdout is not None
            told: EngineError | None = None
            for text in process.stdout:
                line = decode_line(text)
                if line is not None:
                    yield line
                else:
                    told = _error(text) or told
            code = process.wait()
            if not self.ended.is_set() and (code or told is not None):
                words.seek(0)
                last = (words.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"])[-1]
                self.error = told or EngineError("twin.failed", "`extend` ended before it was done.", cause=last)

    def end(self) -> None:
        """Ask it and its children to end; one that does not is killed."""
        self.ended.set()
        process = self._process
        if process is not None:
            threading.Thread(target=_end, args=(process,), name="race-end", daemon=True).start()

    def end_now(self) -> None:
        """The same without waiting for it: the program is leaving."""
        self.ended.set()
        if self._process is not None:
            _signal(self._process, signal.SIGTERM)


def follow(key: RaceKey, show: Callable[[Line], None]) -> EngineError | None:
    """Show every line; Ctrl+C stops the process and what was measured counts. Returns why it failed."""
    process = RaceProcess(key)
    try:
        for line in process.lines():
            show(line)
    except KeyboardInterrupt:
        process.end_now()
    return process.error


def _error(text: bytes) -> EngineError | None:
    """The error in a line `{"error": {...}}`."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    told = document.get("error") if isinstance(document, dict) else None
    if not isinstance(told, dict):
        return None
    code, what = str(told.get("code", "")), str(told.get("what", ""))
    cause, next_step = str(told.get("cause", "")), str(told.get("next_step", ""))
    return EngineError(code, what, cause=cause, next_step=next_step, exit_code=ExitCode.RUN_FAILED)


def _end(process: subprocess.Popen[bytes]) -> None:
    _signal(process, signal.SIGTERM)
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To it and its children: they share a session."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
