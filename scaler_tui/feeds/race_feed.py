"""Runs a race of scaling methods, or a search of factors, in a process of its own and passes its lines on in batches.

Owns that process and its end. The lines are the command line's own (`extend --race --json-lines`); its log file makes
what was measured outlast the screen, the program and a stop. Nothing here waits in the interface thread.
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
import time
from typing import IO

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError, ExitCode
from engine.jobs.race_lines import Line, decode_line
from scaler_tui.window import RaceKey

PROGRAM = (sys.executable, "-m", "scaler_tui")
BATCH_SECONDS = 0.25
"""Lines are passed on at most this often."""
PATIENCE_SECONDS = 3.0
"""A process that was asked to end gets this long."""


class RaceNews(Message):
    """Lines of a race, and whether it still runs."""

    def __init__(self, key: RaceKey, lines: tuple[Line, ...], *, running: bool, error: EngineError | None) -> None:
        super().__init__()
        self.key = key
        self.lines = lines
        self.running = running
        self.error = error


class RaceFeed:
    """One process; `start` and `cancel` return at once."""

    def __init__(self, key: RaceKey, target: MessagePump) -> None:
        self.key = key
        self._target = target
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = threading.Event()

    def start(self) -> None:
        """Start the process; RaceNews follow until one says that it no longer runs."""
        threading.Thread(target=self._run, name="race", daemon=True).start()

    def cancel(self) -> None:
        """End the process; what it measured stays in its log."""
        self._cancelled.set()
        process = self._process
        if process is not None:
            threading.Thread(target=_end, args=(process,), name="race-end", daemon=True).start()

    def end_now(self) -> None:
        """End the process before returning: the program is leaving."""
        self._cancelled.set()
        if self._process is not None:
            _signal(self._process, signal.SIGTERM)

    def _run(self) -> None:
        error: EngineError | None = None
        try:
            error = self._follow()
        except OSError as failure:
            error = EngineError("twin.failed", "`extend` could not be started.", cause=str(failure))
        self._post((), running=False, error=error)

    def _follow(self) -> EngineError | None:
        """Read lines until the process ends; its error, where it had one."""
        self.key.log.parent.mkdir(parents=True, exist_ok=True)
        command = [*PROGRAM, *self.key.words, "--log", str(self.key.log)]
        with tempfile.TemporaryFile() as words:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, start_new_session=True
            )
            self._process = process
            if self._cancelled.is_set():
                _end(process)
            assert process.stdout is not None
            told = self._pass_on(process.stdout)
            code = process.wait()
            if self._cancelled.is_set() or (code == 0 and told is None):
                return None
            if told is not None:
                return told
            words.seek(0)
            last = (words.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"])[-1]
            return EngineError("twin.failed", "`extend` ended before it was done.", cause=last)

    def _pass_on(self, lines: IO[bytes]) -> EngineError | None:
        """Post what comes, in batches: a thread reads, so that a lone line is not held back."""
        batch: list[Line] = []
        told: EngineError | None = None
        posted = 0.0
        reader = _Reader(lines)
        while True:
            text = reader.next(BATCH_SECONDS)
            if text:
                line = decode_line(text)
                if line is not None:
                    batch.append(line)
                else:
                    told = _error(text) or told
            if batch and (text is None or time.monotonic() - posted >= BATCH_SECONDS):
                self._post(tuple(batch), running=True, error=None)
                batch, posted = [], time.monotonic()
            if text is None:
                return told

    def _post(self, lines: tuple[Line, ...], *, running: bool, error: EngineError | None) -> None:
        self._target.post_message(RaceNews(self.key, lines, running=running, error=error))


class _Reader:
    """Lines with a time limit: b"" when none came, None at the end."""

    def __init__(self, lines: IO[bytes]) -> None:
        import queue

        self._empty = queue.Empty
        self._lines: queue.Queue[bytes | None] = queue.Queue(maxsize=1000)
        threading.Thread(target=self._read, args=(lines,), name="race-lines", daemon=True).start()

    def _read(self, lines: IO[bytes]) -> None:
        for line in lines:
            self._lines.put(line)
        self._lines.put(None)

    def next(self, seconds: float) -> bytes | None:
        try:
            return self._lines.get(timeout=seconds)
        except self._empty:
            return b""


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
