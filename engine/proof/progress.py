"""What the proof says while it works: one JSON line per step on standard output.

Owns the line's form. Must not know what is measured. Whoever started the process reads the lines; people never do.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from engine.helper_process import LineOut

Report = Callable[[str, int, int, str], None]
"""(phase, steps done, steps in all, what is under way in words)."""


def silent(_phase: str, _done: int, _total: int, _words: str) -> None:
    """Says nothing."""


class JsonLines:
    """One line per call."""

    def __init__(self) -> None:
        self._out = LineOut()

    def __call__(self, phase: str, done: int, total: int, words: str) -> None:
        line = {"phase": phase, "done": done, "total": total, "words": words}
        self._out.write(json.dumps(line).encode() + b"\n")
