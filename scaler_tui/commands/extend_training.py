"""`extend --train`: the run that teaches a model its new length, started and followed as `run` does.

Owns which run belongs to an extension, and what is said of one that did not finish. What is trained and how is the
engine's (`engine.extension.training`); the run survives this process like every other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, ExitCode
from scaler_tui import output

if TYPE_CHECKING:
    from engine.extension.extend import Decision
    from engine.extension.staging import Order

RUN = "run.txt"
"""In the staging folder: the directory of the run."""


def trainer(arguments: argparse.Namespace, order: Order) -> Callable[[Decision, Path], Path] | None:
    """Trains at the new length when the extension has come that far; None for an order without training."""
    if not order.train:
        return None

    from engine.jobs.store import load_state

    def train(decision: Decision, folder: Path) -> Path:
        run_dir = _run_of(order, decision, folder)
        if load_state(run_dir).state.is_live:
            output.note(f"Run {run_dir.name} trains at the new length in the background. Ctrl+C stops it after saving.")
        _follow(run_dir, quiet=arguments.json)
        return run_dir / "output" / "merged"

    return train


def _run_of(order: Order, decision: Decision, folder: Path) -> Path:
    """The run of this extension, started now or by an earlier attempt. Raises EngineError."""
    from engine.extension.training import mix_report, training_spec
    from engine.jobs.launch import launch
    from engine.jobs.layout import write_atomic
    from scaler_tui.commands.mix import Counting
    from scaler_tui.mix_text import made_lines
    from scaler_tui.preflight import check, create

    noted = folder / RUN
    if noted.is_file():
        run_dir = Path(noted.read_text(encoding="utf-8").strip())
        if run_dir.is_dir():
            _continue(run_dir)
            return run_dir
    spec = training_spec(order, decision.plan, folder, Counting())
    mixed = mix_report(folder)
    for line in made_lines(mixed) if mixed is not None else ():
        output.note(line)
    checked = check(spec, base=Path.cwd(), force=False)
    for text in checked.notes:
        output.note(text)
    run_dir = create(checked)
    write_atomic(noted, str(run_dir).encode())
    launch(run_dir)
    return run_dir


def _continue(run_dir: Path) -> None:
    """A run that stopped goes on; one that works or is finished is left alone."""
    from engine.jobs.control import resume
    from engine.jobs.store import load_state

    if load_state(run_dir).state.is_resumable:
        resume(run_dir)


def _follow(run_dir: Path, *, quiet: bool) -> None:
    """Until the run ends. Raises EngineError when that was not the end of its training."""
    from engine.jobs.store import load_state
    from scaler_tui.follow import Interrupts, follow

    with Interrupts() as interrupts:
        code = follow(run_dir, interrupts, quiet=quiet)
    if code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if code != ExitCode.DONE:
        state = load_state(run_dir)
        raise EngineError(
            "extension.training",
            f"Run {run_dir.name} is {state.state} and has not finished its training.",
            cause=state.what or state.cause,
            next_step="Go on with extend MODEL OUT --resume; finished steps are kept. "
            f"See also: scaler-wizard logs {run_dir.name}",
            exit_code=ExitCode(code),
        )
