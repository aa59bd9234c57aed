"""What the proof says while it works: one JSON line per step on standard output.

Owns the line's form. Must not know what is measured. Whoever started the process reads the lines; people never do.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

Report = Callable[[str, int, int, str], None]
"""(phase, steps done, steps in all, what is under way in words)."""


def silent(_phase: str, _done: int, _total: int, _words: str) -> None:
    """Says nothing."""


class JsonLines:
    """One line per call. A reader that went away is no reason to stop: the proof's file is the result."""

    def __init__(self) -> None:
        self._heard = True

    def __call__(self, phase: str, done: int, total: int, words: str) -> None:
        if not self._heard:
            return
        try:
            sys.stdout.write(json.dumps({"phase": phase, "done": done, "total": total, "words": words}) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            self._heard = False
            # What Python still holds for the pipe would raise again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
