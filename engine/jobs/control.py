"""The only words anybody has to a run: pause, stop, checkpoint - as small files in `control/`.

Owns requesting and taking them, and resume. Must not know how the worker honours them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from engine.errors import EngineError
from engine.jobs import elsewhere, layout, lock
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.launch import launch, refuse_when_held
from engine.jobs.state import RunPhase, RunState
from engine.jobs.store import load_state
from engine.jobs.summary import quick_state


def request(run_dir: Path, command: str) -> None:
    """Ask a live run for `command`; it is honoured at the next step boundary. Stopping a paused or lost run marks it
    stopped at once. Raises EngineError when the run is in no state for it."""
    if command not in layout.COMMANDS:
        raise EngineError("control.unknown", f"'{command}' is no command for a run.", next_step=f"Use {_spoken()}.")
    if elsewhere.is_elsewhere(run_dir):
        elsewhere.pass_on(run_dir, command)
        return
    state = quick_state(run_dir)
    if state.state.is_live:
        _write_request(run_dir, command)
    elif command == "stop" and state.state in (RunPhase.PAUSED, RunPhase.LOST):
        _mark_stopped(run_dir, state)
    else:
        raise _refusal(run_dir.name, command, state)


def _spoken() -> str:
    return ", ".join(layout.COMMANDS[:-1]) + f" or {layout.COMMANDS[-1]}"


def _write_request(run_dir: Path, command: str) -> None:
    directory = run_dir / layout.CONTROL
    directory.mkdir(exist_ok=True)
    staging = directory / f".{command}.{os.getpid()}"
    staging.write_text(f"{time.time():.3f}\n")
    staging.replace(directory / command)


def _mark_stopped(run_dir: Path, state: RunState) -> None:
    handle = lock.acquire(run_dir)
    if handle is None:
        refuse_when_held(run_dir)
        return
    try:
        with JournalWriter(run_dir / layout.RUNNER_JOURNAL) as journal:
            what = f"Stopped at step {state.step} while nothing was running."
            journal.write(ev.End(t=time.time(), outcome="stopped", step=state.step, what=what), sync=True)
    finally:
        os.close(handle)


def _refusal(run_id: str, command: str, state: RunState) -> EngineError:
    done = {"pause": "paused", "stop": "stopped"}.get(command)
    if state.state.value == done:
        what = f"Run {run_id} is {done} already."
    else:
        what = f"Run {run_id} is {state.state.value}; there is nothing to {command}."
    next_step = f"Resume it with `scaler-wizard resume {run_id}`." if state.state.is_resumable else ""
    return EngineError("control.not_running", what, cause=state.what, next_step=next_step)


def take(run_dir: Path) -> str | None:
    """Worker side: the strongest pending request, or None; all are removed. Costs one listing of a folder."""
    try:
        names = set(os.listdir(run_dir / layout.CONTROL))
    except OSError:
        return None
    pending = [command for command in layout.COMMANDS if command in names]
    for command in pending:
        (run_dir / layout.CONTROL / command).unlink(missing_ok=True)
    return pending[0] if pending else None


def resume(run_dir: Path, *, processes: int = 0) -> int:
    """Start the run again from its newest good checkpoint, with so many `processes` per machine where one is given;
    returns the runner's pid. Raises EngineError.

    Of a run on another machine the host is asked, and the pid is 0."""
    if elsewhere.is_elsewhere(run_dir):
        elsewhere.pass_on(run_dir, "resume")
        return 0
    state = load_state(run_dir)
    refuse_when_held(run_dir)
    if state.state.is_live and state.runner_pid == 0 and state.worker_pid == 0:
        return launch(run_dir, processes=processes)  # created, never started
    if not state.state.is_resumable:
        raise EngineError(
            "run.not_resumable",
            f"Run {run_dir.name} is {state.state.value}; there is nothing to resume.",
            cause=state.warning or state.what,
            next_step=f"See it with `scaler-wizard attach {run_dir.name}`.",
        )
    return launch(run_dir, processes=processes)
