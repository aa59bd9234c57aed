"""`run SPEC --keep DIR`: a run on a machine that may be taken away at any moment, gone on with by whoever comes next.

Owns the decision what the next machine does with what was kept, and what a termination signal means. Must not copy
anything itself (`engine.remote.keep`).
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import EngineError, ExitCode
from engine.jobs.spec import JobSpec
from engine.jobs.state import RunPhase
from scaler_tui import output

_POLL_SECONDS = 0.5


def run_kept(arguments: argparse.Namespace) -> int:
    """Start the spec, or go on with what is kept of it; returns the exit code. Raises EngineError."""
    from engine.jobs.launch import launch
    from engine.jobs.spec_toml import load_spec
    from engine.remote.keep import OVER, keeping, restore
    from scaler_tui.commands.work import checked_file
    from scaler_tui.preflight import create

    keep = Path(arguments.keep)
    if not keep.is_dir():
        raise EngineError(
            "keep.missing",
            f"There is no folder {keep}.",
            next_step="Mount it first; what should go on is looked for there.",
        )
    spec = load_spec(arguments.spec)
    found = restore(keep, spec, arguments.spec.parent)
    if found is None:
        run_dir = create(checked_file(arguments))
        launch(run_dir)
        output.note(f"Run {run_dir.name}; what is needed to go on is kept in {keep}.")
    else:
        run_dir = found
        state = _settled(run_dir)
        if state in OVER:
            with keeping(run_dir, spec, keep):  # it may have ended here, and been cut off before all of it was kept
                pass
            output.note(f"Run {run_dir.name} is {state.value} already; there is nothing to go on with.")
            return int(ExitCode.DONE if state is RunPhase.FINISHED else ExitCode.DECLINED)
        if state.is_resumable:
            from engine.jobs.control import resume

            resume(run_dir)
            output.note(f"Run {run_dir.name} goes on with what was kept in {keep}.")
    return _followed(run_dir, spec, keep, quiet=arguments.json)


def _settled(run_dir: Path) -> RunPhase:
    """Its state, once it is sure that nobody works on it any more: a heartbeat of the other machine may be that
    young."""
    from engine.jobs.lock import is_held
    from engine.jobs.summary import ELSEWHERE_SECONDS, quick_state

    deadline = time.monotonic() + ELSEWHERE_SECONDS + 5
    while (state := quick_state(run_dir).state).is_live and not is_held(run_dir) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return state


def _followed(run_dir: Path, spec: JobSpec, keep: Path, *, quiet: bool) -> int:
    from engine.remote.keep import keeping
    from scaler_tui.commands.cards import emit_card, has_card, print_card
    from scaler_tui.follow import Interrupts, follow

    with Interrupts() as interrupts, _saved_on_termination(run_dir) as told, keeping(run_dir, spec, keep):
        code = follow(run_dir, interrupts, quiet=quiet)
    if told:
        return int(ExitCode.INTERRUPTED)
    if has_card(run_dir) and code == ExitCode.DONE:
        emit_card(run_dir) if quiet else print_card(run_dir)
    return code


@contextmanager
def _saved_on_termination(run_dir: Path) -> Iterator[list[int]]:
    """SIGTERM is how a machine says that it goes: the run saves and pauses. What is yielded then is not empty."""
    told: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        from engine.jobs.control import request

        told.append(number)
        try:
            request(run_dir, "pause")
            output.note("Saving: this machine is about to go.")
        except EngineError as error:  # it has just ended
            output.note(error.what)

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
