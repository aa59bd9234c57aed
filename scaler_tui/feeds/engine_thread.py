"""The app's background engine thread: launches, resumes and controls runs, so that no key ever waits for a disk.

Owns one thread and its queue. Must not own a run: everything it starts is detached and outlives the app. Results come
back as messages to whoever asked.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message

from engine.errors import EngineError
from scaler_tui.feeds.journal_feed import Inbox
from scaler_tui.feeds.twin import ask_twin
from scaler_tui.spec_file import temporary_spec

if TYPE_CHECKING:
    from textual.app import App

    from engine.jobs.spec import JobSpec


class EngineDone(Message):
    """`action` succeeded: "launch", "resume", "pause", "stop", "checkpoint" or "merge"."""

    def __init__(self, action: str, run_dir: Path) -> None:
        super().__init__()
        self.action = action
        self.run_dir = run_dir


class EngineFailed(Message):
    """`action` was refused or went wrong."""

    def __init__(self, action: str, error: EngineError) -> None:
        super().__init__()
        self.action = action
        self.error = error


class EngineThread:
    """Runs one request after the other. Every method returns at once."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[str, Inbox, Callable[[], Path]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def launch(self, spec: JobSpec, reply_to: Inbox, *, force: bool = False) -> None:
        """Check `spec` as `scaler-wizard start` does (model, rows, memory, disk) and start its detached runner.

        `force` starts what does not fit all the same; the run's journal then says so.
        """
        folder = Path.cwd()

        def work() -> Path:
            flags = ("--force",) if force else ()
            with temporary_spec(spec, folder) as path:
                return Path(ask_twin("start", "--json", *flags, str(path))["directory"])

        self._queue.put(("launch", reply_to, work))

    def resume(self, run_dir: Path, reply_to: Inbox) -> None:
        """Start the runner of an existing run again; it goes on from the newest good checkpoint."""

        def work() -> Path:
            from engine.jobs.control import resume

            resume(run_dir)
            return run_dir

        self._queue.put(("resume", reply_to, work))

    def control(self, run_dir: Path, command: str, reply_to: Inbox) -> None:
        """Ask a run to "pause", "stop" or "checkpoint"."""

        def work() -> Path:
            from engine.jobs.control import request

            request(run_dir, command)
            return run_dir

        self._queue.put((command, reply_to, work))

    def merge(self, run_dir: Path, reply_to: Inbox) -> None:
        """Write the merged model in a process of its own; the reply comes when that process has ended.

        It has its own session and writes to a file, so it goes on when the app is left.
        """
        threading.Thread(
            target=self._perform, args=("merge", reply_to, lambda: _merge(run_dir)), name="merge", daemon=True
        ).start()

    def close(self) -> None:
        """End after the requests that are queued."""
        self._queue.put(None)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            self._perform(*job)

    @staticmethod
    def _perform(action: str, reply_to: Inbox, work: Callable[[], Path]) -> None:
        reply: Message
        try:
            reply = EngineDone(action, work())
        except EngineError as error:
            reply = EngineFailed(action, error)
        except Exception as error:
            what = f"Could not {action} the run."
            reply = EngineFailed(action, EngineError("run.action", what, cause=f"{type(error).__name__}: {error}"))
        reply_to.post_message(reply)


def _merge(run_dir: Path) -> Path:
    ask_twin("merge", "--json", run_dir.name)
    return run_dir


def engine_thread_of(app: App[object]) -> EngineThread:
    """The app's engine thread; it is started when first needed."""
    thread = getattr(app, "_engine_thread", None)
    if not isinstance(thread, EngineThread):
        thread = EngineThread()
        app._engine_thread = thread  # type: ignore[attr-defined]
    return thread
