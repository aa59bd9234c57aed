"""The process behind a chat (`python -m engine.chat`): questions down its standard input, news up its standard output.

Owns what it is told, and the words for an end nobody asked for. Must not know Textual: the screen's feed and the line
mode both use it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from engine.errors import EngineError, ExitCode
from engine.jobs.chat_lines import News, Open, Request, decode_news, encode
from scaler_tui.line_process import LineProcess, last_words

PROGRAM = (sys.executable, "-m", "engine.chat")
_TOO_LARGE = ("evaluation.memory", "chat.memory", "chat.no_room")


class ChatProcess(LineProcess[News]):
    """One chat; in a session of its own, because Ctrl+C is for the front end, which stops an answer with it."""

    def __init__(self, opening: Open, program: Sequence[str] = ()) -> None:
        super().__init__(lambda: program or PROGRAM, decode_news, heard=True)
        self._opening = opening

    def opening(self) -> bytes:
        return encode(self._opening)

    def ask(self, request: Request) -> None:
        """One request."""
        self.send(encode(request))

    def end_now(self, number: signal.Signals = signal.SIGKILL) -> None:
        """At once: it has nothing to save."""
        super().end_now(number)

    def not_started(self, failure: OSError) -> EngineError:
        return EngineError(
            "chat.failed",
            "The process of the chat could not be started.",
            cause=failure.strerror or str(failure),
            exit_code=ExitCode.RUN_FAILED,
        )

    def exit_code_of(self, code: str) -> ExitCode:
        return ExitCode.DOES_NOT_FIT if code in _TOO_LARGE else ExitCode.BAD_INPUT

    def ended_badly(self, code: int, words: str) -> EngineError:
        if code == -signal.SIGKILL:
            cause = "It was killed; most likely this machine's memory ran out."
            next_step = "Load it smaller (--quantization nf4, --dtype bfloat16), or compare fewer models."
        else:
            last = last_words(words, code)[:300]
            cause = f"It was ended by signal {-code}: {last}" if code < 0 else last
            next_step = "Open the chat again; what was said is saved."
        return EngineError(
            "chat.failed",
            "The process of the chat ended by itself.",
            cause=cause,
            next_step=next_step,
            exit_code=ExitCode.RUN_FAILED,
        )
