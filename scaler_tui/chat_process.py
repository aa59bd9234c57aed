"""The process behind a chat (`python -m engine.chat`): questions down its standard input, news up its standard output.

Owns that process, its end, and the words for an end nobody asked for. Must not know Textual: the screen's feed and the
line mode both use it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence

from engine.errors import EngineError, ExitCode
from engine.jobs.chat_lines import News, Open, Request, decode_news, encode

PROGRAM = (sys.executable, "-m", "engine.chat")


class ChatProcess:
    """One process; `news` reads it to its end, `send` and `end_now` may be called from any thread."""

    def __init__(self, opening: Open, program: Sequence[str] = ()) -> None:
        self._opening = opening
        self.error: EngineError | None = None
        """Why it ended, once `news` is through; None when it was asked to."""
        self._program = list(program or PROGRAM)
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def news(self) -> Iterator[News]:
        """Start it, and what it says until it ends."""
        try:
            yield from self._news()
        except OSError as failure:
            self.error = EngineError(
                "chat.failed",
                "The process of the chat could not be started.",
                cause=failure.strerror or str(failure),
                exit_code=ExitCode.RUN_FAILED,
            )

    def _news(self) -> Iterator[News]:
        with tempfile.TemporaryFile() as words:
            # A session of its own: Ctrl+C is for the front end, which stops an answer with it.
            process = subprocess.Popen(
                self._program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, start_new_session=True
            )
            with self._lock:
                self._process = process
            if self._ended.is_set():
                self.end_now()
            self.send(self._opening)
            assert process.stdout is not None
            told: EngineError | None = None
            for text in process.stdout:
                line = decode_news(text)
                if line is not None:
                    yield line
                else:
                    told = _error(text) or told
            code = process.wait()
            if not self._ended.is_set():
                words.seek(0)
                self.error = told or _ended_badly(code, words.read().decode(errors="replace"))

    def send(self, request: Request) -> None:
        """One request; nothing happens when the process is gone, `news` says why."""
        with self._lock:
            process = self._process
            if process is None or process.stdin is None or self._ended.is_set():
                return
            with contextlib.suppress(OSError, ValueError):
                process.stdin.write(encode(request))
                process.stdin.flush()

    def end_now(self) -> None:
        """End it at once: it has nothing to save."""
        self._ended.set()
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(OSError):
                process.kill()


def _error(text: bytes) -> EngineError | None:
    """The error in a line {"error": {...}}."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    told = document.get("error") if isinstance(document, dict) else None
    if not isinstance(told, dict):
        return None
    code, what = str(told.get("code", "")), str(told.get("what", ""))
    cause, next_step = str(told.get("cause", "")), str(told.get("next_step", ""))
    exit_code = ExitCode.DOES_NOT_FIT if code in _TOO_LARGE else ExitCode.BAD_INPUT
    return EngineError(code, what, cause=cause, next_step=next_step, exit_code=exit_code)


_TOO_LARGE = ("evaluation.memory", "chat.memory", "chat.no_room")


def _ended_badly(code: int, words: str) -> EngineError:
    """The end of a process without a word of its own."""
    if code == -signal.SIGKILL:
        cause = "It was killed; most likely this machine's memory ran out."
        next_step = "Load it smaller (--quantization nf4, --dtype bfloat16), or compare fewer models."
    else:
        last = (words.strip().splitlines() or [f"exit code {code}"])[-1].strip()[:300]
        cause = f"It was ended by signal {-code}: {last}" if code < 0 else last
        next_step = "Open the chat again; what was said is saved."
    return EngineError(
        "chat.failed",
        "The process of the chat ended by itself.",
        cause=cause,
        next_step=next_step,
        exit_code=ExitCode.RUN_FAILED,
    )
