"""Passes the lines of a race, or of a search of factors, on to the app in batches, at most four a second.

Owns the threads that read the process (`scaler_tui.race_process`). Nothing here waits in the interface thread.
"""

from __future__ import annotations

import threading

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError
from engine.jobs.race_lines import Line
from scaler_tui.feeds.batches import Batches
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
        self._batches = Batches[Line](BATCH_SECONDS)

    def start(self) -> None:
        """Start the process; RaceNews follow until one says that it no longer runs."""
        read, pass_on = self._batches.read, self._batches.pass_on
        threading.Thread(target=read, args=(self.process.lines(),), name="race-lines", daemon=True).start()
        threading.Thread(target=pass_on, args=(self._post,), name="race", daemon=True).start()

    def cancel(self) -> None:
        """End the process; what it measured stays in its log."""
        self.process.end()

    def end_now(self) -> None:
        """The program is leaving."""
        self.process.end_now()

    def _post(self, lines: tuple[Line, ...], running: bool) -> None:
        news = RaceNews(self.process.key, lines, running=running, error=self.process.error)
        self._target.post_message(news)
