"""Run directories: made whole or not at all, listed newest first, found by id.

Owns ids, `run.json` and the look-up. Must not start anything. Folding lives in `engine.jobs.fold`, the judgement of
silent runs and the cheap summaries in `engine.jobs.summary`.
"""

from __future__ import annotations

import secrets
import shutil
import time
from pathlib import Path

import msgspec

import engine
from engine.errors import EngineError
from engine.jobs import layout
from engine.jobs.fold import Fold
from engine.jobs.journal import JournalTail
from engine.jobs.liveness import host_name
from engine.jobs.spec import JobSpec
from engine.jobs.spec_toml import canonical, dump_spec, spec_hash, with_absolute_paths
from engine.jobs.state import RunPhase, RunState
from engine.jobs.summary import RunRecord, RunSummary, frozen_spec, judge, read_record, summarize
from engine.paths import ensure_writable, runs_dir

__all__ = ["RunSummary", "create_run", "find_run", "list_runs", "load_run_spec", "load_state"]

_STAGING = ".new-"


def create_run(spec: JobSpec, *, base: Path | None = None) -> Path:
    """A new run directory, complete with spec and record. File names in the spec are relative to `base` (cwd)."""
    spec = canonical(with_absolute_paths(spec, (base or Path.cwd()).absolute()))
    parent = ensure_writable(runs_dir())
    created = time.time()
    for _ in range(100):
        run_id = time.strftime("%Y%m%d-%H%M%S", time.gmtime(created)) + f"-{secrets.token_hex(2)}"
        target = parent / run_id
        if not target.exists():
            break
    staging = parent / f"{_STAGING}{run_id}"
    record = RunRecord(
        id=run_id, created=created, spec_hash=spec_hash(spec), program_version=_program_version(), host=host_name()
    )
    try:
        for name in (layout.CONTROL, layout.CHECKPOINTS):
            (staging / name).mkdir(parents=True)
        layout.write_atomic(staging / layout.SPEC, dump_spec(spec).encode())
        layout.write_atomic(staging / layout.RUN, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        staging.rename(target)
        layout.fsync_directory(parent)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):
            raise EngineError(
                "run.unwritable", f"Cannot make a run directory in {parent}.", cause=error.strerror or str(error)
            ) from error
        raise
    return target


def _program_version() -> str:
    return str(getattr(engine, "__version__", ""))


def list_runs() -> list[RunSummary]:
    """Every run, newest first. Costs some tens of kilobytes of reading per run, however long its journal is."""
    try:
        names = [entry for entry in runs_dir().iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []
    summaries = [summarize(run_dir) for run_dir in names]
    return sorted(summaries, key=lambda summary: (summary.created, summary.id), reverse=True)


def find_run(wanted: str) -> Path:
    """The run directory for an id, a unique beginning or ending of one, "latest", or a path to a run directory."""
    try:
        names = sorted(e.name for e in runs_dir().iterdir() if e.is_dir() and not e.name.startswith("."))
    except OSError:
        names = []
    if wanted == "latest" and names:
        return list_runs()[0].directory
    if wanted in names:
        return runs_dir() / wanted
    path = Path(wanted).expanduser()
    if wanted and (path / layout.SPEC).is_file():
        return path.resolve()
    matches = [name for name in names if wanted and (name.startswith(wanted) or name.endswith(wanted))]
    if len(matches) == 1:
        return runs_dir() / matches[0]
    if matches:
        raise EngineError(
            "run.ambiguous",
            f"'{wanted}' fits {len(matches)} runs: {', '.join(matches[-8:])}.",
            next_step="Write more of the id.",
        )
    raise EngineError(
        "run.unknown",
        f"There is no run '{wanted}'." if names else "There are no runs yet.",
        cause=f"Known runs: {', '.join(names[-8:])}." if names else f"{runs_dir()} is empty.",
        next_step="See `scaler-wizard runs`." if names else "Start one with `scaler-wizard demo`.",
    )


def load_run_spec(run_dir: Path) -> JobSpec:
    """The frozen spec of a run. Raises EngineError when it was damaged or edited since."""
    return frozen_spec(run_dir, read_record(run_dir))


def load_state(run_dir: Path) -> RunState:
    """The folded state of one run, with a look at its processes. A damaged directory is a failed run, not an error."""
    return Follower(run_dir).poll()


class Follower:
    """Keeps the state of one run up to date: poll it as often as you like, only new lines are read."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.tail = JournalTail(run_dir)
        self.fold = Fold()

    def poll(self) -> RunState:
        """Read what is new and judge. Its lists are shared with the fold: read them, do not change them."""
        try:
            record = read_record(self.run_dir)
            self._read()
            state = judge(self.fold.state, self.run_dir, record)
            if state.state is RunPhase.LOST:
                self._read()  # its last lines may have come between reading and looking
                state = judge(self.fold.state, self.run_dir, record)
            return state
        except EngineError as error:
            return RunState(state=RunPhase.FAILED, what=error.what, cause=error.cause, next_step=error.next_step)
        except OSError as error:
            what = f"{self.run_dir} cannot be read."
            return RunState(state=RunPhase.FAILED, what=what, cause=error.strerror or str(error))

    def _read(self) -> None:
        resets = self.tail.resets
        events = self.tail.stream()
        for event in events:
            if self.tail.resets != resets:
                break
            self.fold.apply(event)
        else:
            return
        self.tail, self.fold = JournalTail(self.run_dir), Fold()
        self.fold.apply_all(self.tail.stream())
