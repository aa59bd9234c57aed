"""Lays out a spec's schedule off the interface thread, with what every stage takes.

Owns the thread and the message that brings the answer. The arithmetic is the engine's.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import EngineError

if TYPE_CHECKING:
    from engine.advise.spec_stages import JobEstimate
    from engine.hardware.machine import Machine
    from engine.jobs.spec import JobSpec
    from engine.models.architecture import Architecture
    from engine.schedule.amounts import SourceAmount
    from scaler_tui.text_plan import TextKey, TextPlan
    from scaler_tui.wizard import Wizard


@dataclass(frozen=True, slots=True)
class ScheduleAsked:
    """A question."""

    key: TextKey
    spec: JobSpec
    architecture: Architecture
    machine: Machine
    amounts: Sequence[SourceAmount]


class SchedulePlanned(Message):
    """The schedule with its estimates, or why there is none."""

    def __init__(self, key: TextKey, job: JobEstimate | None, error: EngineError | None) -> None:
        super().__init__()
        self.key = key
        self.job = job
        self.error = error


def amounts_of(plan: TextPlan) -> tuple[SourceAmount, ...]:
    """How much text there is, as far as the checks know."""
    from engine.schedule.amounts import AmountOrigin, SourceAmount

    found = []
    for source in plan.sources:
        checked, tokens = plan.known(source), float(plan.tokens_of(source))
        files = checked.report.files if checked is not None and checked.report is not None else 0
        size = checked.report.text_bytes if checked is not None and checked.report is not None else 0
        origin = AmountOrigin.COUNTED if tokens else AmountOrigin.UNKNOWN
        found.append(SourceAmount(source.name, files, size, tokens, tokens, tokens, origin))
    return tuple(found)


def plan_schedule(asked: ScheduleAsked) -> JobEstimate:
    """Raises EngineError where a stage cannot be."""
    from engine.advise.spec_stages import Text, estimate_job
    from engine.models.resolve import resolve_model

    ref = resolve_model(asked.spec.model.source, revision=asked.spec.model.revision)
    return estimate_job(asked.spec, ref, asked.architecture, asked.machine, Text(tuple(asked.amounts)))


def lay_out_text(target: MessagePump, wizard: Wizard, approach: str, spec: JobSpec) -> None:
    """Have the job on large text laid out, unless it is; SchedulePlanned follows."""
    key = wizard.text_key(approach)
    if wizard.machine is not None and wizard.architecture is not None and wizard.text.job(key) is None:
        amounts = amounts_of(wizard.text)
        schedule_in_thread(target, ScheduleAsked(key, spec, wizard.architecture, wizard.machine, amounts))


def schedule_in_thread(target: MessagePump, asked: ScheduleAsked) -> None:
    """Plan and post SchedulePlanned."""

    def work() -> None:
        try:
            target.post_message(SchedulePlanned(asked.key, plan_schedule(asked), None))
        except EngineError as error:
            target.post_message(SchedulePlanned(asked.key, None, error))
        except Exception as error:  # a bug in planning must not leave the screen waiting
            told = EngineError(
                "internal.feed",
                f"Planning failed: {type(error).__name__}: {error}",
                next_step="This is a fault of the program; another schedule may work.",
            )
            target.post_message(SchedulePlanned(asked.key, None, told))

    threading.Thread(target=work, name="schedule", daemon=True).start()
