"""Watches the list of runs in a thread; posts it when it changed, at most once a second.

Owns the cache that makes this cheap: a run whose files did not grow and that is not live is not read again. Must not
touch widgets.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from textual.message import Message

from engine.jobs.layout import CARD, JOURNAL, RUNNER_JOURNAL
from engine.jobs.summary import RunSummary, summarize
from engine.paths import runs_dir
from scaler_tui.feeds.journal_feed import Inbox

LIST_SECONDS = 1.0

Signature = tuple[int, ...]


class RunsListed(Message):
    """The runs, newest first."""

    def __init__(self, runs: tuple[RunSummary, ...]) -> None:
        super().__init__()
        self.runs = runs


class RunsFeed:
    """The thread. One per open list."""

    def __init__(self, inbox: Inbox, *, seconds: float = LIST_SECONDS) -> None:
        self._inbox = inbox
        self._seconds = max(seconds, LIST_SECONDS)
        self._stopped = threading.Event()
        self._known: dict[Path, tuple[Signature, RunSummary]] = {}
        self._thread = threading.Thread(target=self._run, name="runs", daemon=True)

    def start(self) -> None:
        """Begin watching."""
        self._thread.start()

    def stop(self) -> None:
        """End soon; returns at once."""
        self._stopped.set()

    @property
    def is_alive(self) -> bool:
        """False once the thread has ended."""
        return self._thread.is_alive()

    def look(self) -> tuple[RunSummary, ...]:
        """The runs now; reads only what can have changed."""
        known: dict[Path, tuple[Signature, RunSummary]] = {}
        for run_dir in _run_dirs():
            signature = _signature(run_dir)
            before = self._known.get(run_dir)
            if before is None or before[0] != signature or before[1].state.is_live:
                known[run_dir] = (signature, summarize(run_dir))
            else:
                known[run_dir] = before
        self._known = known
        runs = (summary for _, summary in known.values())
        return tuple(sorted(runs, key=lambda run: (run.created, run.id), reverse=True))

    def _run(self) -> None:
        posted: tuple[RunSummary, ...] | None = None
        while not self._stopped.is_set():
            runs = self.look()
            if runs != posted:
                if not self._inbox.post_message(RunsListed(runs)):
                    return
                posted = runs
            self._stopped.wait(self._seconds)


def _run_dirs() -> list[Path]:
    with contextlib.suppress(OSError):
        return [entry for entry in runs_dir().iterdir() if not entry.name.startswith(".") and entry.is_dir()]
    return []


def _signature(run_dir: Path) -> Signature:
    sizes = []
    for name in (JOURNAL, RUNNER_JOURNAL, CARD):
        try:
            sizes.append((run_dir / name).stat().st_size)
        except OSError:
            sizes.append(-1)
    return tuple(sizes)
