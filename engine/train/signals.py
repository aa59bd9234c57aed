"""SIGTERM and SIGINT as a wish to pause, honoured as soon as nothing can be lost.

Owns the two handlers. Must not know what a pause does. While steps run, the wish waits for the step's end; anywhere
else the work is repeatable and stops at once.
"""

from __future__ import annotations

import signal
from types import FrameType


class PauseRequested(BaseException):
    """Unwinds the worker; not an Exception, so that no library swallows it."""

    def __init__(self, reason: str, command: str = "pause") -> None:
        super().__init__(reason)
        self.reason = reason
        self.command = command


class PauseSignals:
    """Install once, in the main thread."""

    def __init__(self, *, patient: bool = False) -> None:
        """`patient`: the wish waits for a step's end wherever it comes. Among several processes that is the only place
        where it means a pause: launchers also send SIGTERM when another process has died."""
        self.reason = ""
        """Why to pause; empty while nobody asked."""
        self._patient = patient
        self._deferred = patient

    def install(self) -> None:
        """Take both signals over."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        first = not self.reason
        self.reason = f"The worker received {signal.Signals(number).name}."
        if first and not self._deferred:
            raise PauseRequested(self.reason)

    def defer(self) -> None:
        """From here on the wish is only noted in `reason`; raises PauseRequested when it is there already."""
        self._deferred = True
        if self.reason and not self._patient:
            raise PauseRequested(self.reason)

    def undefer(self) -> None:
        """From here on a signal stops the work at once again; raises PauseRequested when one came meanwhile."""
        self._deferred = self._patient
        if self.reason and not self._patient:
            raise PauseRequested(self.reason)

    def ignore(self) -> None:
        """The end is being written: nothing may interrupt it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
