"""The process that scores or sweeps mixes (`adapters score --json-lines`): wishes in, figures out.

Owns what is asked of it. Must not know Textual.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec

from engine.errors import EngineError
from engine.jobs.mix_lines import AskedMix, Line, decode_line
from scaler_tui.line_process import LineProcess, last_words

PROGRAM = (sys.executable, "-m", "scaler_tui")


class MixProcess(LineProcess[Line]):
    """One scorer or sweep."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(lambda: (*PROGRAM, *words), decode_line, heard=True)

    def ask(self, wish: AskedMix) -> None:
        """Send a wish; one that is gone is not asked any more."""
        self.send(msgspec.json.encode(wish) + b"\n")

    def not_started(self, failure: OSError) -> EngineError:
        return EngineError("twin.failed", "`adapters` could not be started.", cause=str(failure))

    def ended_badly(self, code: int, words: str) -> EngineError | None:
        if not code:
            return None
        return EngineError("twin.failed", "The scoring process ended.", cause=last_words(words, code))
