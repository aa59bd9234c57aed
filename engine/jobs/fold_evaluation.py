"""What suites, benchmarks, retention, recoveries and exports mean for the state of a run; part of the fold.

Owns these figures and their rewind, and holds those of a teacher. Must not know steps, files or processes
(`engine.jobs.fold` hands events over).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.jobs import events as ev
from engine.jobs.fold_lessons import Lessons
from engine.jobs.series import Series

SCORE_LIMIT = 2000
RECOVERY_LIMIT = 200
EXPORT_LIMIT = 50
SERIES_LIMIT = 500
"""Buckets of a suite's curve."""
Say = Callable[[float, str, str], None]
"""(wall time, level, message)."""


@dataclass(slots=True)
class Findings:
    """Mutable, as `RunState`, which holds it."""

    suites: dict[str, Series] = field(default_factory=dict)
    """Bits per byte over steps, by suite; step 0 is before training."""
    suite_scores: dict[str, ev.SuiteScore] = field(default_factory=dict)
    """The newest of each."""
    suites_before: dict[str, ev.SuiteScore] = field(default_factory=dict)
    """Each before training."""
    benchmarks: list[ev.BenchmarkScore] = field(default_factory=list)
    """By step, oldest first."""
    retention: ev.Retention | None = None
    """The newest look."""
    recoveries: list[ev.Recovery] = field(default_factory=list)
    """What the run went through; a rewind takes nothing away from it."""
    ranks: ev.Ranks | None = None
    lessons: Lessons = field(default_factory=Lessons)
    """Of a teacher."""
    exports: list[ev.ExportReport] = field(default_factory=list)
    """Oldest first."""

    def apply(self, event: ev.AnyEvent, say: Say) -> None:
        """Take one of HANDLED."""
        _HANDLERS[type(event)](self, event, say)

    def rewind(self, step: int) -> None:
        """Void what was measured after `step`."""
        for series in self.suites.values():
            series.rewind(step)
        self.lessons.rewind(step)
        self.suite_scores = {name: score for name, score in self.suite_scores.items() if score.step <= step}
        self.benchmarks = [score for score in self.benchmarks if score.step <= step]
        if self.retention is not None and self.retention.step > step:
            self.retention = None

    def _suite(self, event: ev.SuiteScore, say: Say) -> None:
        self.suites.setdefault(event.suite, Series(SERIES_LIMIT)).add(event.step, event.bits_per_byte)
        self.suite_scores[event.suite] = event
        if event.step == 0:
            self.suites_before[event.suite] = event
        say(event.t, "info", f"{event.suite}: {event.bits_per_byte:.4f} bits per byte at step {event.step}")

    def _benchmark(self, event: ev.BenchmarkScore, say: Say) -> None:
        self.benchmarks = [*self.benchmarks, event]
        if len(self.benchmarks) > SCORE_LIMIT:  # those before training are what all later ones are held against
            oldest = next((at for at, score in enumerate(self.benchmarks) if score.step > 0), 0)
            del self.benchmarks[oldest]
        error = "" if event.standard_error is None else f" ± {event.standard_error:.3f}"
        say(event.t, "info", f"{event.task}: {event.metric} {event.value:.3f}{error} at step {event.step}")

    def _retention(self, event: ev.Retention, say: Say) -> None:
        self.retention = event
        for report in event.reports:
            if report.verdict == "lost":
                say(event.t, "warning", report.words)
        if event.gate:
            say(event.t, "warning", event.gate)

    def _recovery(self, event: ev.Recovery, say: Say) -> None:
        self.recoveries = [*self.recoveries, event][-RECOVERY_LIMIT:]
        say(event.t, "warning", f"{event.what} {event.remedy}")

    def _ranks(self, event: ev.Ranks, say: Say) -> None:
        self.ranks = event
        say(event.t, "info", f"{event.world} processes met ({event.strategy} over {event.backend})")

    def _teacher(self, event: ev.Teacher, say: Say) -> None:
        say(event.t, "info", self.lessons.hear(event))

    def _rollout(self, event: ev.Rollout, say: Say) -> None:
        self.lessons.add(event)

    def _exported(self, event: ev.Exported, say: Say) -> None:
        report = event.report
        self.exports = [*(one for one in self.exports if one != report), report][-EXPORT_LIMIT:]
        say(event.t, "info", f"Exported for {report.destination}: {len(report.files)} files")


_HANDLERS: dict[type, Callable[[Findings, Any, Say], None]] = {
    ev.SuiteScore: Findings._suite,
    ev.BenchmarkScore: Findings._benchmark,
    ev.Retention: Findings._retention,
    ev.Recovery: Findings._recovery,
    ev.Ranks: Findings._ranks,
    ev.Teacher: Findings._teacher,
    ev.Rollout: Findings._rollout,
    ev.Exported: Findings._exported,
}
HANDLED = tuple(_HANDLERS)
"""Kinds of event that belong here."""
