"""Watching a run without the full-screen app: a progress display, or plain lines where there is no terminal.

Owns the text. The run does not depend on it: closing this loses nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from engine.errors import EngineError, ExitCode
from engine.jobs.state import RunPhase, RunState
from engine.units import format_bytes, format_duration
from scaler_tui import output

_POLL_SECONDS = 0.25


def follow(run_dir: Path, *, quiet: bool = False) -> int:
    """Follow until the run ends; returns the exit code that says how. Ctrl+C asks the run to save and stop."""
    view: _Quiet | _Lines | _Bar = _Quiet() if quiet else _Bar() if sys.stderr.isatty() else _Lines()
    stopping = False
    with view:
        while True:
            try:
                state = _watch(run_dir, view)
                break
            except KeyboardInterrupt:
                if stopping:
                    output.note(f"Left. The run goes on: scaler-wizard attach {run_dir.name}")
                    return int(ExitCode.INTERRUPTED)
                stopping = True
                _ask_to_stop(run_dir)
    return _closing(run_dir, state, interrupted=stopping)


def _watch(run_dir: Path, view: _Quiet | _Lines | _Bar) -> RunState:
    from engine.jobs.store import Follower

    follower = Follower(run_dir)
    while True:
        state = follower.poll()
        view.show(state)
        if not state.state.is_live:
            return state
        time.sleep(_POLL_SECONDS)


def _ask_to_stop(run_dir: Path) -> None:
    from engine.jobs.control import request

    try:
        request(run_dir, "stop")
        output.note("Stopping: the step is finished and saved first. Ctrl+C again leaves it running in the background.")
    except EngineError as error:
        output.note(error.what)


def _closing(run_dir: Path, state: RunState, *, interrupted: bool) -> int:
    """The last words and the exit code."""
    if state.state is RunPhase.FINISHED:
        return int(ExitCode.DONE)
    output.note(f"Run {run_dir.name} is {state.state} at step {state.step} of {state.total_steps or '?'}.")
    for label, text in (("", state.what), ("Cause: ", state.cause), ("Next:  ", state.next_step)):
        if text:
            output.note(f"  {label}{text}")
    if interrupted:
        return int(ExitCode.INTERRUPTED)
    if state.state in (RunPhase.STOPPED, RunPhase.PAUSED):
        return int(ExitCode.DECLINED)
    return int(ExitCode.RUN_FAILED)


class _Quiet:
    """Shows nothing (`--json`)."""

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to restore."""

    def show(self, state: RunState) -> None:
        """Nothing."""


class _Lines(_Quiet):
    """One line per phase and per tenth of the steps; for logs and pipes."""

    def __init__(self) -> None:
        self._phase = ""
        self._tenth = -1

    def show(self, state: RunState) -> None:
        """Print what is new."""
        if state.phase and state.phase != self._phase:
            self._phase = state.phase
            output.note(f"[{state.phase}] {state.phase_detail}".rstrip())
        if state.total_steps:
            tenth = state.step * 10 // state.total_steps
            if tenth != self._tenth and state.step:
                self._tenth = tenth
                output.note("  " + _figures(state))


def _figures(state: RunState) -> str:
    parts = [f"step {state.step}/{state.total_steps}"]
    if state.loss is not None:
        parts.append(f"loss {state.loss:.3f}")
    if state.tokens_per_second:
        parts.append(f"{state.tokens_per_second:,.0f} tokens/s")
    if state.eta_seconds is not None:
        parts.append(f"{format_duration(state.eta_seconds)} left")
    if state.peak_bytes:
        parts.append(f"peak {format_bytes(state.peak_bytes)}")
    return " · ".join(parts) if output.stderr_is_utf8() else " | ".join(parts)


class _Bar(_Quiet):
    """Rich's progress bar."""

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("starting", total=None, figures="")
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, state: RunState) -> None:
        """Move the bar."""
        training = state.total_steps > 0
        self._progress.update(
            self._task,
            description=state.phase or str(state.state),
            total=state.total_steps if training else None,
            completed=state.step if training else 0,
            figures=_figures(state) if training else state.phase_detail,
        )


def print_log(run_dir: Path, *, follow: bool) -> None:
    """The run's log lines; with `follow` until it ends."""
    from engine.jobs.store import Follower

    follower = Follower(run_dir)
    last: tuple[float, str, str] | None = None
    while True:
        state = follower.poll()
        lines = state.log
        fresh = lines[lines.index(last) + 1 :] if last in lines else lines
        for when, level, message in fresh:
            output.say(f"{time.strftime('%H:%M:%S', time.localtime(when))} {level:<7} {message}")
        last = lines[-1] if lines else None
        if not follow or not state.state.is_live:
            return
        sys.stdout.flush()
        time.sleep(_POLL_SECONDS)


def print_worker_log(run_dir: Path) -> None:
    """The worker's own output, as it wrote it."""
    path = run_dir / "worker.log"
    if not path.exists():
        raise EngineError(
            "run.no_log", f"Run {run_dir.name} has no worker log yet.", next_step="Try again in a moment."
        )
    output.say(path.read_text(encoding="utf-8", errors="replace").rstrip())
