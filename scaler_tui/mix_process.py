"""The process that scores mixes (`adapters score --json-lines`): wishes in, figures out, its end.

Owns that process. Must not know Textual.
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
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from engine.errors import EngineError, ExitCode
from engine.jobs.mix_lines import AskedMix, Line, decode_line

PROGRAM = (sys.executable, "-m", "scaler_tui")
PATIENCE_SECONDS = 3.0
"""A process that was asked to end gets this long."""


class MixProcess:
    """One process; `lines` reads it to its end, `ask` and `end` may be called from any thread."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.error: EngineError | None = None
        """Why it failed, once `lines` is through."""
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def lines(self) -> Iterator[Line]:
        """What it says, as it comes."""
        try:
            yield from self._lines()
        except OSError as failure:
            self.error = EngineError("twin.failed", "`adapters` could not be started.", cause=str(failure))

    def _lines(self) -> Iterator[Line]:
        with tempfile.TemporaryFile() as words:
            process = subprocess.Popen(
                [*PROGRAM, *self.words],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, start_new_session=True,
            )  # fmt: skip
            self._process = process
            if self._ended.is_set():
                self.end()
            assert process.stdout is not None
            rest: deque[bytes] = deque(maxlen=100)
            for raw in process.stdout:
                line = decode_line(raw)
                if line is not None:
                    yield line
                else:
                    rest.append(raw)
            code = process.wait()
            told = _error(b"".join(rest))
            if not self._ended.is_set() and (code or told is not None):
                words.seek(0)
                last = (words.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"])[-1]
                self.error = told or EngineError("twin.failed", "The scoring process ended.", cause=last)

    def ask(self, wish: AskedMix) -> None:
        """Send a wish; one that is gone is not asked any more."""
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                process.stdin.write(msgspec.json.encode(wish) + b"\n")
                process.stdin.flush()

    def end(self) -> None:
        """Ask it to end; one that does not is killed. Returns at once."""
        self._ended.set()
        process = self._process
        if process is not None:
            threading.Thread(target=_end, args=(process,), name="mix-end", daemon=True).start()

    def end_now(self) -> None:
        """The same without waiting: the program is leaving."""
        self._ended.set()
        if self._process is not None:
            _signal(self._process, signal.SIGTERM)


def _error(raw: bytes) -> EngineError | None:
    """The error in a document `{"error": {...}}`, on however many lines."""
    try:
        document = json.loads(raw)
    except ValueError:
        return None
    told = document.get("error") if isinstance(document, dict) else None
    if not isinstance(told, dict):
        return None
    code, what, cause, step = (str(told.get(name, "")) for name in ("code", "what", "cause", "next_step"))
    return EngineError(code, what, cause=cause, next_step=step, exit_code=ExitCode.RUN_FAILED)


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
