"""What a teacher and the student's own answers mean for the state of a run; part of the fold.

Owns these figures and their rewind. Must not know files or processes, nor how a loss is made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.jobs import events as ev
from engine.jobs.series import Series

PARTS = ("labels", "teacher", "hidden")
"""Of `Step.losses`, in the order in which screens show them."""
SERIES_LIMIT = 500
"""Buckets of a part's curve."""


@dataclass(slots=True)
class Lessons:
    """Mutable, as `RunState`; empty in a job without a teacher."""

    teacher: ev.Teacher | None = None
    """The newest word of it."""
    losses: dict[str, float] = field(default_factory=dict)
    """Parts of the loss of the newest step that has any, before their weights."""
    curves: dict[str, Series] = field(default_factory=dict)
    """Each part over the steps that have it."""
    rollout: ev.Rollout | None = None
    """The newest."""
    _written: dict[str, Series] = field(default_factory=dict)
    """ "tokens" and "seconds" of the student's own answers, by step."""

    @property
    def rollout_tokens(self) -> int:
        """New tokens that the student wrote to learn on."""
        return round(self._total("tokens"))

    @property
    def rollout_seconds(self) -> float:
        return self._total("seconds")

    @property
    def rollout_tokens_per_second(self) -> float | None:
        """While it writes; training has its own."""
        return self.rollout_tokens / self.rollout_seconds if self.rollout_seconds > 0 else None

    def _total(self, name: str) -> float:
        return self._written[name].total if name in self._written else 0.0

    def take(self, steps: Sequence[ev.Step]) -> None:
        """Steps of rising number; those before a teacher was there have no parts."""
        for part in PARTS:
            found = [(step.step, step.losses[part]) for step in steps if part in step.losses]
            if found:
                self.curves.setdefault(part, Series(SERIES_LIMIT)).extend(*map(list, zip(*found, strict=True)))
        self.losses = dict(next((step.losses for step in reversed(steps) if step.losses), self.losses))

    def hear(self, event: ev.Teacher) -> str:
        """The teacher is there; returns a line for the log."""
        self.teacher = event
        if event.cached_tokens:
            return f"Teacher {event.name}: logits of {event.cached_tokens:,} tokens are cached"
        return f"Teacher {event.name} is ready ({event.held})"

    def add(self, event: ev.Rollout) -> None:
        """Answers of the student's own."""
        if self.rollout is not None and event.step <= self.rollout.step:
            self.rewind(event.step - 1)  # a torn line: that step is done again
        self.rollout = event
        for name, value in (("tokens", event.tokens), ("seconds", event.seconds)):
            self._written.setdefault(name, Series(SERIES_LIMIT)).add(event.step, value)

    def rewind(self, step: int) -> None:
        """Void what came after `step`."""
        for series in (*self._written.values(), *self.curves.values()):
            series.rewind(step)
        self.curves = {part: series for part, series in self.curves.items() if len(series)}
        self.losses = {part: series.last_value for part, series in self.curves.items() if series.last_value is not None}
        if self.rollout is not None and self.rollout.step > step:
            self.rollout = None
