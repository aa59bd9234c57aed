"""A helper process that prints one line of JSON per piece of news: started, read to its end, spoken to, ended.

Owns that process and why it ended. Must not know what the lines mean, nor Textual: feeds, `--plain` and line modes read
such processes alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from engine.errors import EngineError, ExitCode

PATIENCE_SECONDS = 3.0
"""A process that was asked to end gets this long."""
_OTHER_LINES = 100
"""Lines that are no news are kept, the newest so many: together they may be the error."""
L = TypeVar("L")


class LineProcess(Generic[L]):
    """One process in a session of its own; `lines` reads it to its end, the rest may be called from any thread."""

    def __init__(
        self, command: Callable[[], Sequence[str]], decode: Callable[[bytes], L | None], *, heard: bool = False
    ) -> None:
        """`command` is asked for when the process starts, `decode` gives None for what is no news. `heard`: it reads
        what `send` writes."""
        self._command = command
        self._decode = decode
        self._heard = heard
        self.error: EngineError | None = None
        """Why it failed, once `lines` is through; None when it was asked to end."""
        self.ended = threading.Event()
        """It was asked to end."""
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    # ── what differs ──────────────────────────────────────────────────────────────────────────────────────────────
    def opening(self) -> bytes:
        """What it is told first."""
        return b""

    def not_started(self, failure: OSError) -> EngineError:
        """It could not be started."""
        raise NotImplementedError

    def ended_badly(self, code: int, words: str) -> EngineError | None:
        """It ended with `code`, without an error of its own; `words` are those on standard error. None: that is no
        failure."""
        raise NotImplementedError

    def exit_code_of(self, code: str) -> ExitCode:
        """The exit code that goes with the error `code` that it told."""
        return ExitCode.RUN_FAILED

    # ── to its end ────────────────────────────────────────────────────────────────────────────────────────────────
    def lines(self) -> Iterator[L]:
        """Start it, and what it says, as it comes."""
        try:
            yield from self._lines()
        except OSError as failure:
            self.error = self.not_started(failure)

    def _lines(self) -> Iterator[L]:
        with tempfile.TemporaryFile() as words:
            given = subprocess.PIPE if self._heard else subprocess.DEVNULL
            process = subprocess.Popen(
                self._command(), stdin=given, stdout=subprocess.PIPE, stderr=words, start_new_session=True
            )
            with self._lock:
                self._process = process
            if self.ended.is_set():
                self.end()
            self.send(self.opening())
            assert process.stdout is not None
            rest: deque[bytes] = deque(maxlen=_OTHER_LINES)
            for raw in process.stdout:
                line = self._decode(raw)
                if line is not None:
                    yield line
                else:
                    rest.append(raw)
            code = process.wait()
            if not self.ended.is_set():
                words.seek(0)
                said = words.read().decode(errors="replace")
                self.error = self._told(rest) or self.ended_badly(code, said)

    def _told(self, rest: Sequence[bytes]) -> EngineError | None:
        """The error in a document `{"error": {...}}`: in one of the lines, the last first, or in all of them."""
        for raw in (*reversed(rest), b"".join(rest)):
            with contextlib.suppress(ValueError):
                document = json.loads(raw)
                told = document.get("error") if isinstance(document, dict) else None
                if isinstance(told, dict):
                    code, what, cause, step = (str(told.get(k, "")) for k in ("code", "what", "cause", "next_step"))
                    return EngineError(code, what, cause=cause, next_step=step, exit_code=self.exit_code_of(code))
        return None

    # ── from outside ──────────────────────────────────────────────────────────────────────────────────────────────
    def send(self, text: bytes) -> None:
        """To its standard input; nothing happens when it is gone, `lines` says why."""
        with self._lock:
            process = self._process
            if process is None or process.stdin is None or self.ended.is_set() or not text:
                return
            with contextlib.suppress(OSError, ValueError):
                process.stdin.write(text)
                process.stdin.flush()

    def end(self) -> None:
        """Ask it and its children to end; one that does not is killed. Returns at once."""
        self.ended.set()
        process = self._process
        if process is not None:
            threading.Thread(target=_end, args=(process,), name="process-end", daemon=True).start()

    def end_now(self, number: signal.Signals = signal.SIGTERM) -> None:
        """The same without looking after it: the program is leaving."""
        self.ended.set()
        if self._process is not None:
            _signal(self._process, number)


def last_words(words: str, code: int) -> str:
    """The last line on standard error, or the exit code where there is none."""
    return (words.strip().splitlines() or [f"exit code {code}"])[-1].strip()


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
