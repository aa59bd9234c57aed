"""Exports at work: each outlives the screen that began it, can be found again, and can be stopped.

Owns their threads and the list of them on the app. The writing is the headless twin's.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from textual.app import App
from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError
from engine.jobs.export_report import ExportReport
from scaler_tui.feeds import twin
from scaler_tui.feeds.mix_feed import TwinDone, TwinSaid

STEPS = 4
"""Lines of progress that are kept."""
LEAVING = "leaving-stops-an-export"
"""The class of the question that stops it when it is left by Ctrl+C."""


class ExportJob:
    """One `export` command; `watcher` is the screen that shows it now."""

    def __init__(self, words: Sequence[str], place: str, watcher: MessagePump | None) -> None:
        self.words, self.place, self.watcher = tuple(words), place, watcher
        self.steps: deque[str] = deque(maxlen=STEPS)
        self.running = True
        self.stopped = False
        self._process: subprocess.Popen[str] | None = None

    def start(self, if_gone: Callable[[TwinDone], None]) -> None:
        """Post TwinSaid and one TwinDone "export"; `if_gone` is called, in the thread, when nobody watches."""

        def work() -> None:
            done = self._done()
            self.running = False
            watcher = self.watcher  # the screen may be left between two looks
            if watcher is None or not watcher.post_message(done):
                if_gone(done)

        threading.Thread(target=work, name="export", daemon=True).start()

    def stop(self) -> None:
        """Ask it to end; TwinDone follows."""
        self.stopped = True
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.terminate()

    def _done(self) -> TwinDone:
        try:
            return TwinDone("export", twin.ask_twin(*self.words, say=self._said, begun=self._begun), None)
        except EngineError as error:
            failed = error
        except Exception as failure:  # a fault must not leave the screen waiting
            what = f"It failed: {type(failure).__name__}: {failure}"
            failed = EngineError("internal.feed", what, next_step="Try it in a shell.")
        if self.stopped:
            failed = EngineError("export.stopped", "The export was stopped.", next_step="Enter begins it again.")
        return TwinDone("export", None, failed)

    def _begun(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        if self.stopped:
            self.stop()

    def _said(self, text: str) -> None:
        step = text.strip("[]")
        if not self.steps or self.steps[-1] != step:
            self.steps.append(step)
            if (watcher := self.watcher) is not None:
                watcher.post_message(TwinSaid("export", step))


def jobs_of(app: App[Any]) -> dict[Path, ExportJob]:
    """By source, the newest export of each."""
    found: dict[Path, ExportJob] | None = getattr(app, "_export_jobs", None)
    if found is None:
        found = {}
        app._export_jobs = found  # type: ignore[attr-defined]
    return found


def stays_for_export(app: App[Any], leave: Callable[[], None]) -> bool:
    """Whether leaving has to wait for an answer, since an export would end with the program."""
    from scaler_tui.screens.problem import ConfirmScreen

    running = [job for job in jobs_of(app).values() if job.running and not job.stopped]
    if not running:
        return False
    if app.screen.has_class(LEAVING):  # Ctrl+C on the question itself; other questions were about something else
        _stop(running)
        return False

    def answered(yes: bool | None) -> None:
        if yes:
            _stop(running)
            leave()

    question = ConfirmScreen("An export is running: leave and stop it?", "n stays; the same export can go on later.")
    question.add_class(LEAVING)
    app.push_screen(question, answered)
    return True


def _stop(jobs: Iterable[ExportJob]) -> None:
    for job in jobs:
        job.stop()


class EarlierExports(Message):
    """What the card of a run says of exports."""

    def __init__(self, exports: tuple[ExportReport, ...]) -> None:
        super().__init__()
        self.exports = exports


def earlier_in_thread(target: MessagePump, run_dir: Path) -> None:
    """Read the card, where there is one; EarlierExports follows."""

    def work() -> None:
        from engine.jobs.card_io import read_card

        with contextlib.suppress(EngineError, OSError):
            target.post_message(EarlierExports(tuple(read_card(run_dir).exports)))

    threading.Thread(target=work, name="earlier exports", daemon=True).start()
