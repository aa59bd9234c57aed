"""How race and search speak and how they are asked to stop: lines on standard output, a flag set by a signal.

Owns both. Must not know what is measured.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from engine.errors import EngineError, ExitCode
from engine.helper_process import LineOut
from engine.jobs.race_lines import Line, RaceProgress, encode_line

Tell = Callable[[Line], None]
PROGRESS_SECONDS = 0.2
"""Progress is printed at most this often; figures always are."""


class Lines:
    """Prints lines, progress not too often."""

    def __init__(self) -> None:
        self._out = LineOut()
        self._progress_at = 0.0

    def __call__(self, line: Line) -> None:
        if isinstance(line, RaceProgress):
            if time.monotonic() - self._progress_at < PROGRESS_SECONDS:
                return
            self._progress_at = time.monotonic()
        self._out.write(encode_line(line))


class StopFlag:
    """True once SIGINT or SIGTERM came. A second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    @contextmanager
    def listening(self) -> Iterator[StopFlag]:
        """Take the signals over inside the block."""
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)


def stopped_error(what: str) -> EngineError:
    """What a stopped race or search ends in; the caller raises it."""
    return EngineError(
        f"{what}.stopped",
        f"The {what} was stopped.",
        cause="The process was asked to end.",
        next_step="The same command with the same --log goes on from there.",
        exit_code=ExitCode.INTERRUPTED,
    )
