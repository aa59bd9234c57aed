"""Follows one run in a thread: tail, fold, liveness; posts a snapshot when something changed, at most twice a second.

Owns when the interface hears of news. Must not touch widgets: it posts `RunUpdated` and `FeedFailed` messages to the
screen that started it and ends with `stop()`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from textual.message import Message

from engine.errors import EngineError
from engine.jobs import elsewhere
from engine.jobs.fold import Fold
from engine.jobs.journal import JournalTail
from engine.jobs.layout import SPEC
from engine.jobs.series import Bucket
from engine.jobs.spec_toml import load_spec
from engine.jobs.state import RunPhase, RunState
from engine.jobs.summary import RunRecord, judge, read_record

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

POST_SECONDS = 0.5
"""Shortest time between two messages."""

POLL_SECONDS = 0.25
"""How often the journal's size is looked at; two stat calls."""

LIVENESS_SECONDS = 2.0
"""How often, without news, the processes are looked at."""


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run at one moment; nothing in it changes any more."""

    run_dir: Path
    spec: JobSpec | None
    spec_problem: str
    state: RunState
    loss: tuple[Bucket, ...]
    evaluation: tuple[Bucket, ...]
    taken: float
    """Wall time."""
    suites: tuple[tuple[str, tuple[Bucket, ...]], ...] = ()
    """Bits per byte over steps, by suite."""


class RunUpdated(Message):
    """Something about the run changed."""

    def __init__(self, snapshot: RunSnapshot) -> None:
        super().__init__()
        self.snapshot = snapshot


class FeedFailed(Message):
    """The run can no longer be followed."""

    def __init__(self, error: EngineError) -> None:
        super().__init__()
        self.error = error


class Inbox(Protocol):
    """Whoever takes messages from other threads: any Textual widget, screen or app."""

    def post_message(self, message: Message) -> bool:
        """Queue the message; False when the receiver is closing."""


class JournalFeed:
    """The thread. One per open run screen."""

    def __init__(self, run_dir: Path, inbox: Inbox, *, post_seconds: float = POST_SECONDS) -> None:
        self._run_dir = run_dir
        self._inbox = inbox
        self._post_seconds = max(post_seconds, POST_SECONDS)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"journal {run_dir.name}", daemon=True)
        self._tail = JournalTail(run_dir)
        self._fold = Fold()
        self._spec: JobSpec | None = None
        self._spec_problem = ""
        self._record: RunRecord | None = None

    def start(self) -> None:
        """Begin following."""
        self._thread.start()

    def stop(self) -> None:
        """End soon; returns at once."""
        self._stopped.set()

    @property
    def is_alive(self) -> bool:
        """False once the thread has ended."""
        return self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(EngineError):  # a mirror that nobody follows says so itself
            elsewhere.follow(self._run_dir)
        try:
            self._read_spec()
            self._follow()
        except EngineError as error:
            self._inbox.post_message(FeedFailed(error))
        except Exception as error:
            failure = EngineError(
                "run.unreadable",
                f"The run in {self._run_dir} cannot be read.",
                cause=f"{type(error).__name__}: {error}",
                next_step="The run itself is not affected; its journal is journal.jsonl in that folder.",
            )
            self._inbox.post_message(FeedFailed(failure))

    def _read_spec(self) -> None:
        try:
            self._spec = load_spec(self._run_dir / SPEC)
        except EngineError as error:
            self._spec_problem = error.what
        with contextlib.suppress(EngineError):  # a bare journal can be watched; its processes cannot be judged
            self._record = read_record(self._run_dir)

    def _follow(self) -> None:
        posted: RunState | None = None
        posted_at = looked_at = float("-inf")
        news = False
        while not self._stopped.is_set():
            now = time.monotonic()
            news = self._catch_up() or news or posted is None
            due = now - looked_at >= LIVENESS_SECONDS and (posted is None or posted.state.is_live)
            if (news or due) and now - posted_at >= self._post_seconds:
                state = self._judged_state()
                looked_at = now
                if news or posted is None or _differs(state, posted):
                    if not self._inbox.post_message(RunUpdated(self._snapshot(state))):
                        return
                    posted, posted_at, news = state, now, False
            self._stopped.wait(POLL_SECONDS)

    def _catch_up(self) -> bool:
        """Fold what is new; True when there was something."""
        if not self._tail.has_news():
            return False
        resets, changed = self._tail.resets, False
        for event in self._tail.stream():
            if self._tail.resets > resets:
                break
            self._fold.apply(event)
            changed = True
            if self._stopped.is_set():
                return False
        if self._tail.resets > resets:  # the file was rewritten under us: begin again
            self._tail, self._fold = JournalTail(self._run_dir), Fold()
            self._fold.apply_all(self._tail.stream())
            return True
        return changed

    def _judged_state(self) -> RunState:
        """A copy of the state (the fold goes on changing its own), with a look at the processes."""
        state = self._judged_copy()
        if state.state is RunPhase.LOST and self._catch_up():
            return self._judged_copy()  # its last lines came between reading and looking
        return state

    def _judged_copy(self) -> RunState:
        state = self._fold.state
        found = state.findings
        copied = replace(
            state,
            log=list(state.log),
            samples=list(state.samples),
            checkpoints=list(state.checkpoints),
            findings=replace(
                found, suites={}, suite_scores=dict(found.suite_scores), suites_before=dict(found.suites_before)
            ),
        )
        return copied if self._record is None else judge(copied, self._run_dir, self._record)

    def _snapshot(self, state: RunState) -> RunSnapshot:
        return RunSnapshot(
            run_dir=self._run_dir,
            spec=self._spec,
            spec_problem=self._spec_problem,
            state=state,
            loss=self._fold.series("loss").buckets(),
            evaluation=self._fold.series("eval_loss").buckets(),
            taken=time.time(),
            suites=tuple((name, series.buckets()) for name, series in self._fold.state.findings.suites.items()),
        )


def _differs(now: RunState, before: RunState) -> bool:
    """Did looking at the processes change the picture?"""
    return (now.state, now.what, now.warning) != (before.state, before.what, before.warning)
