"""Measurements before and after training, the answers shown with them, and what is kept of them between attempts.

Owns `before.json`. Must not know what is trained between the two.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from engine.jobs import events as ev
from engine.jobs import layout
from engine.jobs.spec import JobSpec
from engine.train.attempt import Attempt
from engine.train.questions import card_questions

if TYPE_CHECKING:
    from engine.data.load import PreparedData
    from engine.evaluation.measure import Measurement, Yardstick
    from engine.evaluation.model import LoadedModel
    from engine.evaluation.retention import Watch
    from engine.train.length_reports import Before

BEFORE = "before.json"


@dataclass(frozen=True, slots=True)
class Sides:
    """What the model was measured with, and what came of it before the first step."""

    yardstick: Yardstick
    before: Measurement
    lengths: Before | None
    watch: Watch


def yardstick_of(spec: JobSpec, data: PreparedData) -> Yardstick:
    """What the spec measures with."""
    from engine.evaluation.measure import Yardstick

    section = spec.evaluation
    return Yardstick(
        heldout=data.heldout,
        base_text=data.base_text,
        questions=card_questions(spec, data),
        exact_match_rows=section.exact_match_rows,
        max_new_tokens=section.max_new_tokens,
    )


def measured_before(
    attempt: Attempt,
    loaded: LoadedModel,
    yardstick: Yardstick,
    as_before: Callable[[], contextlib.AbstractContextManager[Any]] | None = None,
) -> Measurement:
    """Measured once per run, with the adapter switched off, and kept for later attempts. `as_before` opens the model as
    it was where that is more than the adapter."""
    from engine.evaluation.measure import Measurement

    path = attempt.run_dir / BEFORE
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        kept = msgspec.json.decode(path.read_bytes(), type=Measurement)
        if len(kept.answers) == len(yardstick.questions):
            return kept
    attempt.phase("measuring before")
    with (as_before or loaded.base_only)():
        before = yardstick.measure(loaded, lambda *what: attempt.phase("measuring before", *what))
    layout.write_atomic(path, msgspec.json.format(msgspec.json.encode(before)))
    write_samples(attempt, 0, yardstick, before.answers)
    return before


def measured_after(attempt: Attempt, loaded: LoadedModel, yardstick: Yardstick, step: int) -> Measurement:
    """The same of the model as it is now, answers and held-out loss written down for `step`."""
    attempt.phase("measuring after")
    after = yardstick.measure(loaded, lambda *what: attempt.phase("measuring after", *what))
    write_samples(attempt, step, yardstick, after.answers)
    if yardstick.heldout:
        attempt.journal.write(
            ev.Eval(t=time.time(), step=step, loss=after.scores.task_loss, seconds=after.scores.seconds)
        )
    return after


def write_samples(attempt: Attempt, step: int, yardstick: Yardstick, answers: Sequence[str]) -> None:
    """Answers to the fixed prompts."""
    for question, text in zip(yardstick.questions, answers, strict=True):
        attempt.journal.write(
            ev.Sample(t=time.time(), step=step, prompt=question.prompt, text=text, expected=question.expected)
        )
