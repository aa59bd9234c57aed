"""The worker process: `python -m engine.train.worker RUN_DIR` does one attempt at a run and says how it ended.

Owns the process: log redirection, signals, the Start and End events, the exit code (0 when the End event is written, 5
when it says failed). Must not know training. Whatever goes wrong becomes an End event in words; the traceback goes into
the worker's log only.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from engine.distributed.life import Life
from engine.distributed.place import take_place
from engine.errors import ExitCode
from engine.helper_process import is_out_of_memory
from engine.jobs import events as ev
from engine.jobs import layout, ranks
from engine.jobs.crew import PIECES
from engine.jobs.journal import JournalWriter
from engine.jobs.spec_section import Task
from engine.train.course import GoBack
from engine.train.environment import (
    choose_threads,
    library_versions,
    prepare_process,
    prepare_torch,
    without_torch,
)
from engine.train.failure import explain
from engine.train.signals import PauseRequested, PauseSignals

ATTEMPT = "SCALER_WIZARD_ATTEMPT"
"""Set by the runner; counted from the journal when the worker is started by hand."""


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    if len(arguments) != 1 or not (Path(arguments[0]) / layout.SPEC).is_file():
        sys.stderr.write("usage: python -m engine.train.worker RUN_DIR (a folder with spec.toml)\n")
        return int(ExitCode.BAD_INPUT)
    run_dir = Path(arguments[0]).resolve()
    place = take_place()
    rank = place.rank if place is not None else 0
    prepare_process(_log_path(run_dir, rank), number=place.local_rank if place is not None else None)
    life = None
    if place is not None:
        life = Life(run_dir, place, pieces=int(os.environ.get(PIECES, "1")))
        life.start()
    signals = PauseSignals(patient=life is not None)
    try:
        with JournalWriter(_journal_path(run_dir, rank)) as journal:
            end = _ended(run_dir, journal, signals, life)
            signals.ignore()
            if end is not None:
                journal.write(end, sync=True)
    except GoBack:
        _begin_again()
    failed = end is None or end.outcome == "failed"
    if life is not None and not failed:
        life.leave()
    return int(ExitCode.RUN_FAILED) if failed else int(ExitCode.DONE)


def _begin_again() -> NoReturn:
    """This process anew, in its own place: what is loaded, trained and drawn is what a resumed run has."""
    os.execv(sys.executable, sys.orig_argv)


def _log_path(run_dir: Path, rank: int) -> Path:
    return run_dir / ranks.FOLDER / f"{rank:04}.log" if rank else run_dir / layout.WORKER_LOG


def _journal_path(run_dir: Path, rank: int) -> Path:
    """The run's journal is the first rank's; another's is only for who looks for an error."""
    if not rank:
        return run_dir / layout.JOURNAL
    path = run_dir / ranks.FOLDER / f"{rank:04}.journal.jsonl"
    path.unlink(missing_ok=True)
    return path


def _ended(run_dir: Path, journal: JournalWriter, signals: PauseSignals, life: Life | None) -> ev.End | None:
    """The attempt, and how it ended; None where other processes decide that."""
    try:
        signals.install()
        return _attempt(run_dir, journal, signals, life)
    except PauseRequested as pause:
        return _interrupted(run_dir, pause)
    except GoBack as back:
        if signals.reason:  # the wish would be forgotten
            return _interrupted(run_dir, PauseRequested(signals.reason))
        if life is not None:
            life.fail(ranks.Failure(kind=ranks.AGAIN, what=str(back)))
            return None
        raise
    except BaseException as error:
        if life is not None and life.leaves_with_leader():
            return None
        traceback.print_exc()
        if life is not None and _gives_up(error, life):
            return None
        failure = explain(error)
        return ev.End(
            t=time.time(),
            outcome="failed",
            what=failure.what,
            cause=failure.cause,
            next_step=failure.next_step,
            step=_last_step(run_dir),
        )


def _gives_up(error: BaseException, life: Life) -> bool:
    """Tell the runner why this process ends; whether it is the runner that says what that means for the run."""
    from engine.train.ranked import give_up

    failure = give_up(error)
    life.fail(failure)
    return not life.place.leads or failure.kind != ranks.ERROR


def _attempt(run_dir: Path, journal: JournalWriter, signals: PauseSignals, life: Life | None) -> ev.End:
    from engine.jobs.store import load_run_spec
    from engine.jobs.summary import read_record
    from engine.train import checkpointing
    from engine.train.report import fold_of

    spec = load_run_spec(run_dir)
    record = read_record(run_dir)
    leads = life is None or life.place.leads
    fold = fold_of(run_dir)
    resume: checkpointing.Resume | None = None
    messages: tuple[str, ...] = ()
    if leads:
        checkpointing.discard_staging(run_dir)
        required = checkpointing.REQUIRED if spec.task.trains_adapter else checkpointing.REQUIRED_GROWN
        resume, messages = checkpointing.find_resume(run_dir, record.spec_hash, required=required)
    threads = choose_threads(spec.training.threads, life.place.local_world if life is not None else 1)
    device = (
        prepare_torch(threads, spec.training.dtype)
        if spec.needs_data or spec.task is Task.MIX
        else without_torch(threads)
    )
    versions = library_versions()
    company = None
    if life is not None:
        from engine.train import ranked

        company = ranked.join(run_dir, life, device)
        resume = ranked.agree(company, spec, resume)
    number = int(os.environ.get(ATTEMPT, "0")) or fold.state.attempt + 1
    journal.write(
        ev.Start(
            t=time.time(),
            attempt=number,
            pid=os.getpid() if life is None else os.getppid(),  # of several processes their launcher's
            resumed_step=resume.progress.step if resume else 0,
            checkpoint=resume.path.relative_to(run_dir).as_posix() if resume else "",
            device=device.name,
            versions=versions,
        ),
        sync=True,
    )
    from engine.train import job
    from engine.train.meters import MeterThread
    from engine.train.scoring import record_score

    attempt = job.Attempt(
        run_dir=run_dir,
        spec=spec,
        spec_hash=record.spec_hash,
        created=record.created,
        journal=journal,
        signals=signals,
        device=device,
        threads=threads,
        versions=versions,
        resume=resume,
        worked_before_seconds=fold.state.working_seconds,
        company=company,
    )
    for message in messages:
        attempt.warn(message)
    # The figures of a model that changes under way, or writes answers between its steps, say nothing about a formula.
    scored = spec.task.trains and not spec.grows and not spec.distillation.on_policy and leads
    meters = MeterThread(journal)
    if leads:
        meters.start()
    try:
        outcome = job.run(attempt)
    except Exception as error:
        if is_out_of_memory(error) and scored:
            record_score(run_dir, spec, device, "out of memory", attempt.worked_seconds())
        raise
    finally:
        meters.stop()
    signals.ignore()
    if scored:
        record_score(run_dir, spec, device, outcome.outcome, attempt.worked_seconds())
    return ev.End(
        t=time.time(),
        outcome=outcome.outcome,
        step=outcome.step,
        what=outcome.what,
        next_step=outcome.next_step,
    )


def _interrupted(run_dir: Path, pause: PauseRequested) -> ev.End:
    """Asked to end where no step is under way: everything since the last checkpoint is done again on resume."""
    outcome = "stopped" if pause.command == "stop" else "paused"
    what = pause.reason or f"{outcome.capitalize()} before the next step began."
    return ev.End(t=time.time(), outcome=outcome, step=_last_step(run_dir), what=what)


def _last_step(run_dir: Path) -> int:
    from engine.jobs.checkpoints import newest_step

    return newest_step(run_dir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
