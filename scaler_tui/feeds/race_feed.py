"""Passes the lines of a race, or of a search of factors, on to the app in batches, at most four a second.

Owns the threads that read the process (`scaler_tui.race_process`). Nothing here waits in the interface thread.
"""

from __future__ import annotations

import queue
import threading
import time

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError
from engine.jobs.race_lines import Line
from scaler_tui.race_process import RaceProcess
from scaler_tui.window import RaceKey

BATCH_SECONDS = 0.25
"""Lines are passed on at most this often."""


class RaceNews(Message):
    """Lines of a race, and whether it still runs."""

    def __init__(self, key: RaceKey, lines: tuple[Line, ...], *, running: bool, error: EngineError | None) -> None:
        super().__init__()
        self.key = key
        self.lines = lines
        self.running = running
        self.error = error


class RaceFeed:
    """One process and its news; `start`, `cancel` and `end_now` return at once."""

    def __init__(self, key: RaceKey, target: MessagePump) -> None:
        self.process = RaceProcess(key)
        self._target = target
        self._lines: queue.Queue[Line | None] = queue.Queue()

    def start(self) -> None:
        """Start the process; RaceNews follow until one says that it no longer runs."""
        threading.Thread(target=self._read, name="race-lines", daemon=True).start()
        threading.Thread(target=self._pass_on, name="race", daemon=True).start()

    def cancel(self) -> None:
        """End the process; what it measured stays in its log."""
        self.process.end()

    def end_now(self) -> None:
        """The program is leaving."""
        self.process.end_now()

    def _read(self) -> None:
        try:
            for line in self.process.lines():
                self._lines.put(line)
        finally:
            self._lines.put(None)

    def _pass_on(self) -> None:
        posted, going = 0.0, True
        while going:
            batch = self._wait_for_some(posted + BATCH_SECONDS)
            going = None not in batch
            self._post([line for line in batch if line is not None], running=going)
            posted = time.monotonic()

    def _wait_for_some(self, due: float) -> list[Line | None]:
        """At least one line, and all that come before `due`; None among them ends it."""
        batch = [self._lines.get()]
        while batch[-1] is not None:
            left = due - time.monotonic()
            try:
                batch.append(self._lines.get(timeout=left) if left > 0 else self._lines.get_nowait())
            except queue.Empty:
                break
        return batch

    def _post(self, lines: list[Line], *, running: bool) -> None:
        news = RaceNews(self.process.key, tuple(lines), running=running, error=self.process.error)
        self._target.post_message(news)
