"""What follows when the loss of a planned step leaps, or is no number.

Owns the decision to go back and its record. Must not know the loop, nor how the way on is found from the record
(`engine.train.course`). The worker then begins another attempt in its own place: what a resume after kill -9 does,
going back does too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NoReturn

from engine.errors import EngineError, ExitCode
from engine.jobs import checkpoints
from engine.jobs import events as ev
from engine.jobs.journal import JournalWriter
from engine.jobs.spec import JobSpec
from engine.train.course import RATE_FACTOR, Course, GoBack, Setback, keep_setbacks, read_setbacks
from engine.train.tally import Tally


@dataclass(frozen=True, slots=True)
class Leap:
    """Where it happened."""

    stage: int
    first_step: int
    """Steps of the job before the stage."""
    step: int
    """Of the job, from 1."""
    loss: float
    course: Course
    broken: str = ""
    """What else than the loss is no number after the step."""


def go_back(run_dir: Path, journal: JournalWriter, spec: JobSpec, leap: Leap, tally: Tally) -> NoReturn:
    """Record it and raise GoBack; raises EngineError `train.loss_spike` where it has happened too often."""
    setbacks = read_setbacks(run_dir)
    what = _what(leap, tally)
    if len(setbacks) >= spec.stop.spike_retries:
        raise _given_up(what, len(setbacks), setbacks)
    newest, dropped = _last_good(run_dir, setbacks, leap, spec.checkpoint.every_steps)
    back_to = newest - leap.first_step
    passed = leap.course.window_of(back_to), leap.course.window_of(leap.step - leap.first_step - 1)
    setback = Setback(
        stage=leap.stage,
        step=leap.step - leap.first_step - 1,
        back_to=back_to,
        first_window=passed[0],
        last_window=passed[1],
        what=what,
    )
    if dropped:  # first: killed in between, the run comes to the same leap and the same setback once more
        checkpoints.drop(run_dir, dropped)
    keep_setbacks(run_dir, (*setbacks, setback))
    count = leap.step - newest
    where = f"the checkpoint of step {newest}" if newest > leap.first_step else "the beginning of the stage"
    where += f", as that of step {dropped} led to a leap again" if dropped else ""
    journal.write(
        ev.Recovery(
            t=time.time(),
            step=leap.step,
            trouble="loss spike",
            what=what,
            back_to_step=newest,
            remedy=f"Back to {where}; the data of the {count} step{'s' if count > 1 else ''} since then "
            f"{'are' if count > 1 else 'is'} passed over, and the learning rate is {RATE_FACTOR:g} of what it was.",
        ),
        sync=True,
    )
    raise GoBack(what)


def _last_good(run_dir: Path, setbacks: tuple[Setback, ...], leap: Leap, every_steps: int) -> tuple[int, int]:
    """(step of the job to go back to, step of the checkpoint that is to be dropped for it or 0).

    That is the newest checkpoint, unless the stage's last setback went back to it too and the run came no further than
    then: it was saved on the way up to the leap, or right behind the update that led there, before any loss could tell.
    Then it is the one before; the beginning of the stage only from its first checkpoint, not from far behind.
    """
    kept = checkpoints.sound_steps(run_dir)
    newest, before = (*kept, 0, 0)[:2]
    if newest <= leap.first_step:
        return leap.first_step, 0
    last = next((one for one in reversed(setbacks) if one.stage == leap.stage), None)
    if last is None or last.back_to != newest - leap.first_step or leap.step - leap.first_step - 1 > last.step:
        return newest, 0
    if before > leap.first_step:
        return before, newest
    can_begin = before or not leap.first_step  # a stage is begun from the last checkpoint of those before it
    return (leap.first_step, newest) if can_begin and newest - leap.first_step <= every_steps else (newest, 0)


def _what(leap: Leap, tally: Tally) -> str:
    recent = tally.recent_losses
    usual = f"; the median of the {len(recent)} steps before is {median(recent):.4g}" if recent else ""
    if leap.broken:
        return f"{leap.broken} at step {leap.step}, whose loss was {leap.loss:.4g}{usual}."
    return f"The loss leapt to {leap.loss:.4g} at step {leap.step}{usual}."


def _given_up(what: str, count: int, setbacks: tuple[Setback, ...]) -> EngineError:
    if not count:
        return EngineError(
            "train.loss_spike",
            what,
            cause="stop.spike_retries = 0 allows no way back.",
            next_step="Start a new run with a third of training.learning_rate, or set stop.spike_retries.",
            exit_code=ExitCode.RUN_FAILED,
        )
    return EngineError(
        "train.loss_spike",
        f"{what} The run went back {count} time{'s' if count > 1 else ''} already, each time with half the rate.",
        cause=f"First: {setbacks[0].what}",
        next_step="Start a new run with a third of training.learning_rate and a longer warm-up, and look at the data "
        "that comes there ([stream] record_documents = true writes down which documents each step was made of).",
        exit_code=ExitCode.RUN_FAILED,
    )
