"""The process that races scaling methods or searches factors: `extend --race --json-lines`.

Owns what is asked of it. Its log file makes what was measured outlast a stop. Must not know Textual: the screens' feed
and `--plain` both read it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from engine.errors import EngineError
from engine.jobs.race_lines import Line, decode_line
from scaler_tui.line_process import LineProcess, last_words
from scaler_tui.window import RaceKey

PROGRAM = (sys.executable, "-m", "scaler_tui")


class RaceProcess(LineProcess[Line]):
    """One race or search; what its log already holds comes first."""

    def __init__(self, key: RaceKey) -> None:
        super().__init__(self._words, decode_line)
        self.key = key

    def _words(self) -> tuple[str, ...]:
        self.key.log.parent.mkdir(parents=True, exist_ok=True)
        return (*PROGRAM, *self.key.words, "--log", str(self.key.log))

    def not_started(self, failure: OSError) -> EngineError:
        return EngineError("twin.failed", "`extend` could not be started.", cause=str(failure))

    def ended_badly(self, code: int, words: str) -> EngineError | None:
        if not code:
            return None
        return EngineError("twin.failed", "`extend` ended before it was done.", cause=last_words(words, code))


def follow(key: RaceKey, show: Callable[[Line], None]) -> EngineError | None:
    """Show every line; Ctrl+C stops the process and what was measured counts. Returns why it failed."""
    process = RaceProcess(key)
    try:
        for line in process.lines():
            show(line)
    except KeyboardInterrupt:
        process.end_now()
    return process.error
