"""What [context] adds to an adapter job once its model is loaded: positions of before, the gate, the length reports.

Owns these pieces and when each is there. Must not know the order of a job's phases. A job without [context] has the
same object with nothing in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.data.load import PreparedData
from engine.errors import EngineError
from engine.evaluation.model import LoadedModel
from engine.jobs.length_report import LengthReport
from engine.rotary.modules import check_frequencies
from engine.train import length_reports
from engine.train.attempt import Attempt
from engine.train.length_reports import Before, Span
from engine.train.original_positions import Rotation, original_rotation
from engine.train.short_gate import ShortGate, open_gate
from engine.train.skipped_positions import check_attention_reaches_across
from engine.train.window import CONTEXT, Window


@dataclass(frozen=True, slots=True)
class LongParts:
    """Of one attempt."""

    attempt: Attempt
    loaded: LoadedModel
    window: Window | None
    original: Rotation
    """Opens the positions of before the extension; nothing where the job neither extends nor mixes windows."""

    @contextlib.contextmanager
    def as_before(self) -> Iterator[None]:
        """The model as the user gave it: without the adapter, and with the positions that it came with."""
        extends = self.window is not None and self.window.plan is not None
        with self.loaded.base_only(), self.original() if extends else contextlib.nullcontext():
            yield

    def check(self) -> None:
        """Before the first step. Raises EngineError `train.pose_pieces_apart`."""
        if self.window is not None and self.attempt.spec.context.window == "pose":
            check_attention_reaches_across(self.loaded, self.window.target)

    def gate(self, data: PreparedData) -> ShortGate | None:
        """None where the spec sets no bound."""
        bound = self.attempt.spec.context.max_short_loss
        if not bound:
            return None
        length = self.window.original if self.window is not None else self.loaded.context_length
        folder = self.attempt.run_dir / CONTEXT
        every = self.attempt.spec.evaluation.every_steps
        return open_gate(folder, self.loaded, data.base_text, length, bound, self.as_before, every)

    # ── length reports ────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def span(self) -> Span:
        window = self.window
        if window is None:
            return Span(self.loaded.context_length, self.loaded.context_length)
        return Span(window.original, window.target, window.plan.method if window.plan is not None else "")

    def lengths_before(self) -> Before | None:
        """None where the card is to have no lengths."""
        if not length_reports.lengths_of(self.attempt.spec, self.span):
            return None
        try:
            with self.as_before():
                return length_reports.report_before(self.attempt, self.loaded, self.span)
        except EngineError as error:
            self._without_lengths(error)
            return None

    def lengths_after(self, before: Before | None, step: int) -> LengthReport | None:
        """Of the model as it is now."""
        if before is None:
            return None
        try:
            return length_reports.report_after(self.attempt, self.loaded, self.span, before, step)
        except EngineError as error:
            self._without_lengths(error)
            return None

    def _without_lengths(self, error: EngineError) -> None:
        """A length that cannot be measured here, for want of memory or text, can be trained all the same."""
        if not error.code.startswith("evaluation."):
            raise error
        self.attempt.warn(f"The card will have no lengths: {error}", error.next_step)


def long_parts(attempt: Attempt, base: Any, loaded: LoadedModel, window: Window | None) -> LongParts:
    """The parts of a loaded model, its frequencies held against the plan. Raises EngineError `context.frequencies`,
    `train.window`."""
    if window is None:
        return LongParts(attempt, loaded, None, contextlib.nullcontext)
    if window.plan is not None:
        check_frequencies(base, window.plan)
    elif attempt.spec.context.window != "mixed":
        return LongParts(attempt, loaded, window, contextlib.nullcontext)
    return LongParts(attempt, loaded, window, original_rotation(base, window))
