"""What a list of runs shows about one run, and the verdict on runs that have gone silent.

Owns `run.json`, the cheap summary (head and tail of the journal only) and the rules for lost and stalled.
Must not start or change anything.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.jobs import elsewhere, layout, lock
from engine.jobs import events as ev
from engine.jobs.fold import Fold
from engine.jobs.journal import merge, read_head_events, read_tail_events
from engine.jobs.liveness import current_boot_id, is_alive
from engine.jobs.spec import JobSpec
from engine.jobs.spec_toml import load_spec, spec_hash
from engine.jobs.state import RunPhase, RunState

STALLED_SECONDS = 60.0
"""A worker that says nothing at all for so long (it meters itself every second) does not make progress."""
ELSEWHERE_SECONDS = 20.0
"""Processes of another machine or container cannot be seen; a heartbeat younger than this proves life there."""
STARTING_SECONDS = 30.0

_HEAD_BYTES = 32 * 1024
_TAIL_BYTES = 64 * 1024
_SHOWN_STEPS = 10


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`: written once, when the run is created."""

    id: str
    created: float
    spec_hash: str
    """Names the job; checkpoints carry it."""
    program_version: str = ""
    host: str = ""
    moved_hash: str = ""
    """Of the spec as it lies here, where the files it names have moved since; else "" (`engine.remote.keep`)."""
    v: int = 1


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One line of the list of runs."""

    id: str
    directory: Path
    state: RunPhase
    name: str = ""
    task: str = ""
    model: str = ""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    shown_loss: float | None = None
    """Held out, where it was measured at this very step; else the mean of the last steps, as one step's own loss can
    be that of a handful of tokens."""
    created: float = 0.0
    started: float | None = None
    updated: float | None = None
    ended: float | None = None
    eta_seconds: float | None = None
    working_seconds: float = 0.0
    cost_usd: float = 0.0
    attempts: int = 0
    what: str = ""
    cause: str = ""
    next_step: str = ""
    warning: str = ""

    def as_dict(self) -> dict[str, object]:
        """For `runs --json`."""
        tree: dict[str, object] = dataclasses.asdict(self)
        return tree | {"directory": str(self.directory), "state": self.state.value}


def read_record(run_dir: Path) -> RunRecord:
    """Raises EngineError `run.damaged`."""
    path = run_dir / layout.RUN
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunRecord)
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineError(
            "run.damaged",
            f"The run directory {run_dir.name} is damaged: {layout.RUN} cannot be read.",
            cause=error.strerror or str(error) if isinstance(error, OSError) else str(error),
            next_step=f"Its files are in {run_dir}; remove the folder when you do not need them.",
        ) from error


def cost_usd(working_seconds: float, usd_per_hour: float) -> float:
    """Money for a rented machine or for electricity: counted while a worker was alive."""
    return working_seconds / 3600 * usd_per_hour


# ── the verdict on silence ────────────────────────────────────────────────────────────────────────────────────────
def judge(state: RunState, run_dir: Path, record: RunRecord, *, now: float | None = None) -> RunState:
    """Turn a state that claims to be live into LOST or STALLED when the processes say otherwise. A pure copy."""
    state = dataclasses.replace(state, warning="")
    if not state.state.is_live:
        return state
    now = time.time() if now is None else now
    if elsewhere.is_elsewhere(run_dir):
        return _judge_mirror(state, run_dir, now)
    if not state.runner_pid and not state.worker_pid:
        return _judge_unstarted(state, run_dir, now - record.created)
    if state.boot_id and state.boot_id != current_boot_id():
        silent_seconds = now - max(state.heartbeat or 0.0, state.updated or 0.0)
        if silent_seconds > ELSEWHERE_SECONDS:
            return _lost(state, "The machine or container it ran on is gone, or was restarted.")
        state.warning = f"It runs in another place ({record.host}); it can be watched from here, not controlled."
        return state
    runner_alive = is_alive(state.runner_pid, state.runner_process_start, state.boot_id)
    worker_alive = is_alive(state.worker_pid, state.worker_process_start, state.boot_id)
    if not runner_alive and not worker_alive:
        if not state.runner_pid and lock.is_held(run_dir):
            return state
        return _lost(state, "Neither its runner nor its worker is alive, and neither said goodbye.")
    if not runner_alive:
        state.warning = "Its runner was killed; the worker goes on without supervision."
    last_word = state.worker_updated or state.started or now
    if worker_alive and now - last_word > STALLED_SECONDS:
        state.state = RunPhase.STALLED
        state.warning = f"The worker is alive but has said nothing for {now - last_word:.0f} s. " + state.warning
    return state


def _judge_mirror(state: RunState, run_dir: Path, now: float) -> RunState:
    """A run on another machine, which was asked whether anybody works on it. Its clock may be another: only times of
    its own are compared with each other."""
    link = elsewhere.link_of(run_dir)
    if link.heard and not link.working:
        return _lost(state, "On its host neither its runner nor its worker is alive, and neither said goodbye.")
    state.warning = elsewhere.warning_of(run_dir, now)
    beat, last_word = state.heartbeat or 0.0, state.worker_updated or state.started or 0.0
    if state.worker_pid and beat - last_word > STALLED_SECONDS:
        state.state = RunPhase.STALLED
        state.warning = f"The worker is alive but has said nothing for {beat - last_word:.0f} s. " + state.warning
    return state


def _judge_unstarted(state: RunState, run_dir: Path, age_seconds: float) -> RunState:
    if lock.is_held(run_dir) or age_seconds < STARTING_SECONDS:
        return state
    state.state = RunPhase.LOST
    state.what = "It was created but never started."
    state.next_step = f"Start it with `scaler-wizard resume {run_dir.name}`."
    return state


def _lost(state: RunState, cause: str) -> RunState:
    step = state.checkpoints[-1].step if state.checkpoints else 0
    state.state = RunPhase.LOST
    state.ended = state.updated
    state.eta_seconds = None
    state.what = "The run was lost."
    state.cause = cause
    state.next_step = f"Press r to resume from step {step}." if step else "Press r to start it again."
    return state


def frozen_spec(run_dir: Path, record: RunRecord) -> JobSpec:
    """The spec the run was started with. Raises EngineError when the file was damaged or edited since."""
    spec = load_spec(run_dir / layout.SPEC)
    if spec_hash(spec) != (record.moved_hash or record.spec_hash):
        raise EngineError(
            "run.spec_changed",
            f"{run_dir / layout.SPEC} is not the spec this run was started with.",
            cause="Its hash differs from the one in run.json.",
            next_step="Undo the edit, or start a new run: scaler-wizard start "
            + shlex.quote(str(run_dir / layout.SPEC)),
        )
    return spec


# ── the cheap summary ─────────────────────────────────────────────────────────────────────────────────────────────
def summarize(run_dir: Path) -> RunSummary:
    """Never raises: what cannot be read becomes a failed run with the reason."""
    try:
        record = read_record(run_dir)
        spec = frozen_spec(run_dir, record)
    except EngineError as error:
        return RunSummary(
            id=run_dir.name, directory=run_dir, state=RunPhase.FAILED, created=_age_of(run_dir),
            what=error.what, cause=error.cause, next_step=error.next_step,
        )  # fmt: skip
    state, fold = _judged_ends(run_dir, record)
    return RunSummary(
        id=run_dir.name,
        directory=run_dir,
        state=state.state,
        name=spec.name,
        task=spec.task.value,
        model=spec.model.source,
        step=state.step,
        total_steps=state.total_steps,
        loss=state.loss,
        eval_loss=state.eval_loss,
        shown_loss=_shown_loss(state, fold),
        created=record.created,
        started=state.started,
        updated=state.updated,
        ended=state.ended,
        eta_seconds=state.eta_seconds,
        working_seconds=state.working_seconds,
        cost_usd=cost_usd(state.working_seconds, spec.usd_per_hour),
        attempts=state.attempt,
        what=state.what,
        cause=state.cause,
        next_step=state.next_step,
        warning=state.warning,
    )


def quick_state(run_dir: Path, record: RunRecord | None = None) -> RunState:
    """The state from the head and the tail of the journal: right in all but the token totals and the curves."""
    return _judged_ends(run_dir, record or read_record(run_dir))[0]


def _judged_ends(run_dir: Path, record: RunRecord) -> tuple[RunState, Fold]:
    fold = _fold_ends(run_dir)
    state = judge(fold.state, run_dir, record)
    if state.state is RunPhase.LOST:  # its last lines may have come between reading and looking
        fold = _fold_ends(run_dir)
        state = judge(fold.state, run_dir, record)
    return state, fold


def _shown_loss(state: RunState, fold: Fold) -> float | None:
    measured, steps = fold.series("eval_loss"), fold.series("loss").buckets()[-_SHOWN_STEPS:]
    if len(measured) and measured.last_step == state.step:
        return state.eval_loss
    if not steps or state.loss is None or not math.isfinite(state.loss):
        return state.loss
    return sum(step.mean * step.count for step in steps) / sum(step.count for step in steps)


def _fold_ends(run_dir: Path) -> Fold:
    runner = read_head_events(run_dir / layout.RUNNER_JOURNAL)
    journal = run_dir / layout.JOURNAL
    head = read_head_events(journal, max_bytes=_HEAD_BYTES)
    size = journal.stat().st_size if journal.exists() else 0
    tail: list[ev.AnyEvent] = []
    wanted = _TAIL_BYTES
    while size > _HEAD_BYTES:
        tail = read_tail_events(journal, max_bytes=wanted, after=_HEAD_BYTES)
        # Meters of slow steps can fill a tail; go back until the tail says where the run stands.
        if wanted >= size or any(isinstance(event, ev.Step | ev.Start) for event in tail):
            break
        wanted *= 4
    fold = Fold()
    for batch in merge([[*head, *tail]], runner):
        fold.apply_all(batch)
    return fold


def _age_of(run_dir: Path) -> float:
    try:
        return run_dir.stat().st_mtime
    except OSError:
        return 0.0
