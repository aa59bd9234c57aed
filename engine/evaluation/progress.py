"""How far a measurement is: tokens through the model, and the time the rest will take.

Owns counting and the line that whoever started the process reads. Must not know what is measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from engine.helper_process import LineOut

Report = Callable[[str, int, int, float | None], None]
"""(what is under way in words, tokens done, tokens in all, seconds to go; None while unknown)."""


def silent(_words: str, _done: int, _total: int, _eta_seconds: float | None) -> None:
    """Says nothing."""


class JsonLines:
    """One line per call on standard output."""

    def __init__(self, phase: str = "measure") -> None:
        self.phase = phase
        self._out = LineOut()

    def __call__(self, words: str, done: int, total: int, eta_seconds: float | None) -> None:
        line = {"phase": self.phase, "done": done, "total": total, "eta_seconds": eta_seconds, "words": words}
        self._out.write(json.dumps(line).encode() + b"\n")


class Meter:
    """Tokens of steps that were skipped count as done, not as speed."""

    def __init__(self, report: Report, total: int) -> None:
        self._report = report
        self.total = total
        self._done = 0
        self._skipped = 0
        self._began = time.monotonic()
        self._words = ""

    def say(self, words: str) -> None:
        """What is under way now."""
        self._words = words
        self._tell()

    def skip(self, tokens: int) -> None:
        """Done before this process."""
        self._done += tokens
        self._skipped += tokens

    def add(self, tokens: int) -> None:
        """Went through the model."""
        self._done += tokens
        self._tell()

    def settle(self, done: int) -> None:
        """Exactly so many by now: steps may take fewer tokens than planned."""
        self._done = done
        self._tell()

    @property
    def done(self) -> int:
        return self._done

    def _tell(self) -> None:
        measured = self._done - self._skipped
        rate = (time.monotonic() - self._began) / measured if measured > 0 else None
        left = max(self.total - self._done, 0)
        self._report(self._words, min(self._done, self.total), self.total, None if rate is None else rate * left)
