"""Watching a run without the full-screen app: a progress display, or plain lines where there is no terminal.

Owns the text and what Ctrl+C means meanwhile. The run does not depend on it: closing this loses nothing.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType

from engine.errors import EngineError, ExitCode
from engine.jobs import layout
from engine.jobs.events import Growth
from engine.jobs.state import RunPhase, RunState
from engine.units import format_bytes, format_duration
from scaler_tui import output
from scaler_tui.growth_progress import progress_words
from scaler_tui.run_news import RunNews

_POLL_SECONDS = 0.25
WAIT_TOLD = 0.02
"""A share of the step's time: waiting for data is told from here on."""


class Interrupts:
    """Counts Ctrl+C instead of breaking off: a run must never be half started or half asked to stop."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        self.count += 1


def follow(run_dir: Path, interrupts: Interrupts, *, quiet: bool = False) -> int:
    """Follow a run of our own until it ends; returns the exit code that says how. The first Ctrl+C asks the run to
    save and stop, the second leaves it working in the background."""
    from engine.jobs.store import Follower

    follower, asked = Follower(run_dir), False
    with _view(quiet) as view:
        while True:
            if interrupts.count and not asked:
                asked = True
                _ask_to_stop(run_dir)
            if interrupts.count > 1:
                output.note(f"Left. The run goes on: scaler-wizard attach {run_dir.name}")
                return int(ExitCode.INTERRUPTED)
            state = follower.poll()
            view.show(state)
            if not state.state.is_live:
                break
            time.sleep(_POLL_SECONDS)
    _closing(run_dir, state)
    return int(ExitCode.INTERRUPTED) if asked and state.state is not RunPhase.FINISHED else exit_code(state)


def watch(run_dir: Path) -> int:
    """Follow somebody else's run; Ctrl+C only leaves."""
    from engine.jobs.store import Follower

    follower = Follower(run_dir)
    try:
        with _view(quiet=False) as view:
            while True:
                state = follower.poll()
                view.show(state)
                if not state.state.is_live:
                    break
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        output.note(f"Left. The run goes on: scaler-wizard attach {run_dir.name}")
        return int(ExitCode.INTERRUPTED)
    _closing(run_dir, state)
    return exit_code(state)


def exit_code(state: RunState) -> int:
    """How the end of a run is told to a shell."""
    if state.state is RunPhase.FINISHED:
        return int(ExitCode.DONE)
    if state.state in (RunPhase.STOPPED, RunPhase.PAUSED):
        return int(ExitCode.DECLINED)
    return int(ExitCode.RUN_FAILED)


def _ask_to_stop(run_dir: Path) -> None:
    from engine.jobs.control import request

    try:
        request(run_dir, "stop")
        output.note("Stopping: the step is finished and saved first. Ctrl+C again leaves it running in the background.")
    except EngineError as error:
        output.note(error.what)


def _closing(run_dir: Path, state: RunState) -> None:
    """The last words: how it ended, why, and what can be done."""
    reached = f" at step {state.step} of {state.total_steps}" if state.total_steps else ""
    output.note(f"Run {run_dir.name} is {state.state}{reached}.")
    next_step = state.next_step
    if state.state.is_resumable and (not next_step or "Press" in next_step):
        next_step = f"Go on with: scaler-wizard resume {run_dir.name}"
    for label, text in (("", state.what), ("Cause: ", state.cause), ("Next:  ", next_step)):
        if text:
            output.note(f"  {label}{text}")


def _view(quiet: bool) -> _Quiet:
    import sys

    from scaler_tui.terminal import draws_in_place

    return _Quiet() if quiet else _Bar() if draws_in_place(sys.stderr) else _Lines()


class _Quiet:
    """Shows nothing (`--json`)."""

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to restore."""

    def show(self, state: RunState) -> None:
        """Nothing."""


class _Lines(_Quiet):
    """One line per phase, the first time, and per tenth of the steps; for logs, pipes and screen readers."""

    def __init__(self) -> None:
        self._phases: set[str] = set()
        self._tenth = -1
        self._grown = ("", 0)
        self._warning = ""
        self._news = RunNews()

    def show(self, state: RunState) -> None:
        """Print what is new."""
        if state.phase and state.phase not in self._phases:
            self._phases.add(state.phase)
            output.note(f"[{state.phase}] {state.phase_detail}".rstrip())
        if state.warning and state.warning != self._warning:
            output.note(f"  Warning: {state.warning}")
        self._warning = state.warning
        for line in self._news.of(state):
            output.note(f"  {line}")
        self._show_growth(state)
        if state.total_steps:
            tenth = state.step * 10 // state.total_steps
            if tenth != self._tenth and state.step:
                self._tenth = tenth
                output.note("  " + _figures(state))

    def _show_growth(self, state: RunState) -> None:
        growth = growth_now(state)
        if growth is None or not growth.total_bytes:
            return
        reached = (growth.phase, growth.done_bytes * 10 // growth.total_bytes)
        if reached != self._grown:
            self._grown = reached
            output.note(f"  {growth_figures(state)}")


def growth_now(state: RunState) -> Growth | None:
    """The surgery's newest word while it is at work."""
    return state.growth if state.state is RunPhase.GROWING else None


def growth_figures(state: RunState) -> str:
    """ "writing  3.10 of 13.2 GiB  23 %  41 s left"; "" when nothing grows."""
    growth = growth_now(state)
    if growth is None:
        return ""
    seconds = growth.t - state.growth_began
    counts_bytes = growth.phase == "writing"
    return progress_words(growth.phase, growth.done_bytes, growth.total_bytes, seconds, counts_bytes=counts_bytes)


def _figures(state: RunState, *, most_cells: int = 200) -> str:
    """What matters most first; what does not fit in `most_cells` is left out."""
    parts = [f"step {state.step}/{state.total_steps}"]
    if state.loss is not None:
        parts.append(f"loss {state.loss:.3f}")
    if state.eta_seconds is not None and state.step < state.total_steps:
        parts.append(f"{format_duration(state.eta_seconds)} left")
    if state.tokens_per_second:
        parts.append(f"{state.tokens_per_second:,.0f} tokens/s")
    if state.wait_share >= WAIT_TOLD:
        parts.append(f"waits {state.wait_share:.0%} for data")
    if state.peak_bytes:
        parts.append(f"peak {format_bytes(state.peak_bytes)}")
    between = " · " if output.stderr_is_utf8() else " | "
    while len(parts) > 1 and len(between.join(parts)) > most_cells:
        parts.pop()
    return between.join(parts)


class _Bar(_Quiet):
    """Rich's progress bar, on one line of 80 cells."""

    _PHASE_CELLS = 17
    _BAR_CELLS = 14

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        self._most_cells = console.width - self._PHASE_CELLS - self._BAR_CELLS - 3
        self._progress = Progress(
            TextColumn(f"{{task.description:<{self._PHASE_CELLS}}}", markup=False),
            BarColumn(bar_width=self._BAR_CELLS),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("starting", total=None, figures="")
        self._news = RunNews()
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, state: RunState) -> None:
        """Move the bar; news stay above it."""
        for line in self._news.of(state):
            self._progress.console.print(line, markup=False, highlight=False)
        growth = growth_now(state)
        training = state.total_steps > 0 and growth is None
        figures = _figures(state, most_cells=self._most_cells) if training else state.phase_detail
        done, total = (state.step, state.total_steps) if training else (0, 0)
        if growth is not None:
            done, total, figures = growth.done_bytes, growth.total_bytes, growth_figures(state)
        self._progress.update(
            self._task,
            description=state.phase or str(state.state),
            total=total or None,
            completed=done,
            figures=figures[: max(self._most_cells, 1)],
        )


def print_log(run_dir: Path, *, follow: bool, as_json: bool = False) -> None:
    """The run's log lines; with `follow` until it ends."""
    from engine.jobs.store import Follower

    follower = Follower(run_dir)
    last: tuple[float, str, str] | None = None
    while True:
        state = follower.poll()
        for when, level, message in _after(state.log, last):
            if as_json:
                output.emit_json({"time": when, "level": level, "message": message}, indent=0)
            else:
                output.say(f"{time.strftime('%H:%M:%S', time.localtime(when))} {level:<7} {message}")
        last = state.log[-1] if state.log else None
        if not follow or not state.state.is_live:
            return
        output.flush()
        time.sleep(_POLL_SECONDS)


def _after(lines: list[tuple[float, str, str]], last: tuple[float, str, str] | None) -> list[tuple[float, str, str]]:
    """The lines behind `last`; all when it is no longer among them."""
    for index in range(len(lines) - 1, -1, -1):
        if lines[index] == last:
            return lines[index + 1 :]
    return list(lines)


def print_worker_log(run_dir: Path, *, follow: bool) -> None:
    """The worker's own output, as it wrote it; with `follow` until the run ends. Raises EngineError."""
    from engine.jobs.store import Follower

    path = run_dir / layout.WORKER_LOG
    if not path.exists():
        raise EngineError(
            "run.no_log", f"Run {run_dir.name} has no worker log yet.", next_step="Try again in a moment."
        )
    follower = Follower(run_dir)
    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            live = follow and follower.poll().state.is_live  # asked first: what is read then is complete
            while text := file.read(65536):
                output.say_block(text)
            if not live:
                return
            output.flush()
            time.sleep(_POLL_SECONDS)
