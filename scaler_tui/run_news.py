"""What is told of a run that is followed without a screen: recoveries, losses, broken limits, measured texts, ranks.

Owns what counts as new and its words. Must not know how lines are printed.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.jobs.state import RunState
from scaler_tui.abilities_text import lost_words, ordered, recovery_words, score_text, sentence


class RunNews:
    """Remembers what was told; every state is asked for what is new in it."""

    def __init__(self) -> None:
        self._recovered = float("-inf")
        """Wall time of the newest recovery told."""
        self._measured = self._ranks = -1
        self._retention = -1, -1
        """Step and questions of the newest comparison told: after the last look at a part of them all are compared."""

    def of(self, state: RunState) -> Iterator[str]:
        """New lines, most important first."""
        found = state.findings
        for recovery in found.recoveries:
            if recovery.t > self._recovered:
                self._recovered = recovery.t
                yield f"Recovered from {recovery.trouble} at step {recovery.step}: {recovery_words(recovery)}"
        if found.ranks is not None and found.ranks.world != self._ranks:
            self._ranks = found.ranks.world
            yield f"{found.ranks.world} processes met: {found.ranks.strategy} over {found.ranks.backend}."
        yield from self._measurements(state)
        yield from self._retained(state)

    def _measurements(self, state: RunState) -> Iterator[str]:
        """One line for all texts of a step, one for all benchmarks, once the run has gone on."""
        found = state.findings
        newest = max((score.step for score in found.suite_scores.values()), default=-1)
        newest = max(newest, found.benchmarks[-1].step if found.benchmarks else -1)
        if newest <= self._measured or (state.state.is_live and state.step <= newest):
            return
        self._measured = newest
        texts = [f"{name} {one.bits_per_byte:.4f}" for name, one in found.suite_scores.items() if one.step == newest]
        if texts:
            yield f"Step {newest}, bits per byte: {', '.join(texts)}."
        newest_of = {(one.task, one.metric): one for one in found.benchmarks if one.step == newest}
        asked = [
            f"{one.task} {one.metric} {score_text(one.metric, one.value, one.standard_error, unicode=False)}"
            for one in newest_of.values()
        ]
        if asked:
            yield f"Step {newest}, benchmarks: {', '.join(asked)}."

    def _retained(self, state: RunState) -> Iterator[str]:
        retention = state.findings.retention
        if retention is None:
            return
        compared = retention.step, sum(report.pairs for report in retention.reports)
        if compared <= self._retention:
            return
        self._retention = compared
        lost = [report for report in ordered(retention.reports) if report.verdict == "lost"]
        if lost:
            yield f"Step {retention.step}: {lost_words(lost)} against the parent model."
        for report in lost:
            yield f"  {sentence(report.words)}"
        if retention.gate:
            yield f"Gate: {retention.gate}"
