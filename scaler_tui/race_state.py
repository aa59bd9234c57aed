"""What a race of scaling methods, or a search of factors, has shown so far: a fold of the lines it prints.

Owns that state and its words for progress. Must not know processes, files or widgets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.errors import EngineError
from engine.jobs.heat_grid import heat_grid
from engine.jobs.length_report import LengthReport
from engine.jobs.race_lines import (
    Contender,
    Line,
    RaceDecided,
    RaceProgress,
    RaceRow,
    RaceStarted,
    SearchDone,
    SearchStarted,
    SearchStep,
)
from engine.jobs.series import Bucket
from engine.units import format_duration

MOST_POINTS = 4000
"""Evaluations kept for the plot; a search has a few hundred."""


@dataclass(slots=True)
class RaceState:
    """Mutable on purpose: lines are folded in one at a time."""

    started: RaceStarted | None = None
    rows: dict[str, RaceRow] = field(default_factory=dict)
    """Method -> its newest figures."""
    now: RaceProgress | None = None
    decided: RaceDecided | None = None
    search: SearchStarted | None = None
    steps: list[SearchStep] = field(default_factory=list)
    divisors: tuple[float, ...] = ()
    """Of the best set of factors so far."""
    found: SearchDone | None = None
    running: bool = False
    error: EngineError | None = None
    version: int = 0
    """Rises with every line: something to redraw for."""

    def take(self, lines: Iterable[Line]) -> None:
        """Fold lines in."""
        for line in lines:
            self.version += 1
            self._take(line)

    def _take(self, line: Line) -> None:
        match line:
            case RaceStarted():
                self.started, self.decided = line, None
            case RaceProgress():
                self.now = line
            case RaceRow():
                self.rows[line.method] = line
            case RaceDecided():
                self.decided, self.now = line, None
            case SearchStarted():
                self.search, self.found, self.steps, self.divisors = line, None, [], ()
            case SearchStep():
                self._take_step(line)
            case SearchDone():
                self.found, self.now = line, None
                self.divisors = line.divisors or self.divisors

    def _take_step(self, step: SearchStep) -> None:
        if self.steps and step.evaluation <= self.steps[-1].evaluation:
            return  # the log of an interrupted search is printed again
        self.steps.append(step)
        del self.steps[:-MOST_POINTS]
        self.divisors = step.divisors or self.divisors

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """Those that run, then those that cannot."""
        found = self.started.contenders if self.started else ()
        return tuple(sorted(found, key=lambda contender: bool(contender.why_not)))

    @property
    def measured(self) -> int:
        """Methods whose figures are complete."""
        return sum(row.complete for row in self.rows.values())

    @property
    def lengths(self) -> tuple[int, ...]:
        """At which perplexity is measured."""
        return self.started.lengths if self.started else ()

    def report(self, method: str) -> LengthReport | None:
        """What is known of a method."""
        row = self.rows.get(method)
        return row.report if row is not None else None

    @property
    def best_points(self) -> list[Bucket]:
        """The best score after each evaluation."""
        return [_point(step.evaluation, step.best) for step in self.steps]

    @property
    def score_points(self) -> list[Bucket]:
        """The evaluations that brought a new best score."""
        best = float("inf")
        found = []
        for step in self.steps:
            if step.score < best:
                found.append(_point(step.evaluation, step.score))
            best = min(best, step.best)
        return found

    @property
    def factor_points(self) -> list[Bucket]:
        """The divisors by pair."""
        return [_point(pair, divisor) for pair, divisor in enumerate(self.divisors)]


def _point(at: int, value: float) -> Bucket:
    return Bucket(at, at, value, value, value, 1)


def needle_share(report: LengthReport, length: int) -> float | None:
    """Right answers at a length over all tasks and depths; None where none were asked."""
    grid = heat_grid(report.needles)
    if grid is None or length not in grid.lengths:
        return None
    return grid.at_length(grid.lengths.index(length))


def progress_words(state: RaceState) -> str:
    """ "measuring yarn: needles at 512, 34 %, about 40 s left"."""
    if state.error is not None:
        return state.error.what
    if state.decided is not None and not state.running:
        return f"{state.measured} methods measured in {format_duration(state.decided.seconds)}"
    if not state.running:
        return f"stopped; {state.measured} methods are measured" if state.rows else "not measured yet"
    now = state.now
    if now is None:
        return "starting: the model is being loaded"
    words = f"measuring {now.method}" + (f": {now.what}" if now.what else "")
    if now.total:
        words += f", {now.done * 100 // now.total} %"
    return words + (f", about {format_duration(now.eta_seconds)} left" if now.eta_seconds is not None else "")


def search_words(state: RaceState) -> str:
    """ "evaluation 34 of 120, about 40 s left"."""
    if state.error is not None:
        return state.error.what
    found, steps, search = state.found, state.steps, state.search
    if found is not None:
        return f"{found.evaluations:,} evaluations in {format_duration(found.seconds)}"
    at = steps[-1].evaluation if steps else 0
    of = f" of {search.evaluations:,}" if search else ""
    if not state.running:
        return f"stopped after evaluation {at:,}{of}; it goes on from there" if steps else "not searched yet"
    if search is None:
        return "starting: the model is being loaded"
    eta = steps[-1].eta_seconds if steps else search.eta_seconds
    return f"evaluation {at:,}{of}" + (f", about {format_duration(eta)} left" if eta is not None else "")
