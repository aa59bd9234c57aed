"""Passes what the scoring process, a sweep and the `adapters` command say on to the screen, in batches.

Owns the threads. Nothing here waits in the interface thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError
from engine.jobs.mix_lines import AskedMix, Line
from scaler_tui.feeds.batches import Batches
from scaler_tui.feeds.twin import ask_twin
from scaler_tui.mix_process import MixProcess

BATCH_SECONDS = 0.1
"""Lines are passed on at most this often."""


class MixSaid(Message):
    """Lines of a process, and whether it still runs."""

    def __init__(self, feed: MixFeed, lines: tuple[Line, ...], *, running: bool, error: EngineError | None) -> None:
        super().__init__()
        self.feed = feed
        self.lines = lines
        self.running = running
        self.error = error


class MixFeed:
    """One process and what it says; every method returns at once."""

    def __init__(self, words: Sequence[str], target: MessagePump) -> None:
        self.process = MixProcess(words)
        self._target = target
        self._batches = Batches[Line](BATCH_SECONDS)
        self._wishes: queue.SimpleQueue[AskedMix | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the process; MixSaid follow until one says that it no longer runs."""
        for name, work in (("mix-lines", self._read), ("mix", self._pass_on), ("mix-wishes", self._ask)):
            threading.Thread(target=work, name=name, daemon=True).start()

    def ask(self, wish: AskedMix) -> None:
        """Send a wish."""
        self._wishes.put(wish)

    def end(self) -> None:
        """End the process."""
        self._wishes.put(None)
        self.process.end()

    def end_now(self) -> None:
        """The program is leaving."""
        self._wishes.put(None)
        self.process.end_now()

    def _ask(self) -> None:
        while (wish := self._wishes.get()) is not None:
            self.process.ask(wish)

    def _read(self) -> None:
        self._batches.read(self.process.lines())

    def _pass_on(self) -> None:
        self._batches.pass_on(self._post)
        self._wishes.put(None)

    def _post(self, lines: tuple[Line, ...], running: bool) -> None:
        error = None if running else self.process.error
        self._target.post_message(MixSaid(self, lines, running=running, error=error))


class TwinDone(Message):
    """A subcommand ended: its JSON, or its error."""

    def __init__(self, action: str, told: dict[str, Any] | None, error: EngineError | None) -> None:
        super().__init__()
        self.action = action
        self.told = told
        self.error = error


class TwinSaid(Message):
    """A line that a subcommand noted while it works."""

    def __init__(self, action: str, text: str) -> None:
        super().__init__()
        self.action = action
        self.text = text


def ask_in_thread(
    target: MessagePump, action: str, words: Sequence[str], if_gone: Callable[[TwinDone], None] = lambda _: None
) -> None:
    """Run `scaler-wizard WORDS` and post what happens; `if_gone` is called, in the thread, when the screen was left."""

    def say(text: str) -> None:
        target.post_message(TwinSaid(action, text))

    def work() -> None:
        try:
            done = TwinDone(action, ask_twin(*words, say=say), None)
        except EngineError as error:
            done = TwinDone(action, None, error)
        except Exception as failure:  # a fault must not leave the screen waiting
            what = f"It failed: {type(failure).__name__}: {failure}"
            done = TwinDone(action, None, EngineError("internal.feed", what, next_step="Try it in a shell."))
        if not target.post_message(done):
            if_gone(done)

    threading.Thread(target=work, name=f"twin {action}", daemon=True).start()
