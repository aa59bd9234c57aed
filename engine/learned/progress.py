"""What the process says while it works: one JSON line per step on standard output.

Owns the line's form. Must not know what is computed. Whoever started the process reads the lines; people never do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

Report = Callable[[str, int, int, str], None]
"""(phase, steps done, steps in all, what is under way in words)."""


def silent(_phase: str, _done: int, _total: int, _words: str) -> None:
    """Says nothing."""


def json_lines(phase: str, done: int, total: int, words: str) -> None:
    """One line per call. A reader that went away is no reason to stop: the file is the result."""
    try:
        sys.stdout.write(json.dumps({"phase": phase, "done": done, "total": total, "words": words}) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = None
    except AttributeError:
        return
