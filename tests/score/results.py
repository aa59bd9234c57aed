"""Predictions beside measurements: signed errors, verdicts, and the longest sequence of a budget.

Owns how one row is scored. Must not know how results are printed. Errors are predicted / measured - 1: below zero the
formula promises too little memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from engine.errors import EngineError
from engine.estimate.memory import estimate_memory, memory_bounds, peak_of
from engine.estimate.workload import OptimizerKind, Workload
from tests.score.methods import NotExpressible
from tests.score.rows import Measured, Row, card_bytes, measured_of
from tests.score.speed import rate_error
from tests.score.stack_of import class_of
from tests.score.workloads import Mapped, mapped

LONGEST = 1 << 22
SHORTEST = 128


@dataclass(frozen=True, slots=True)
class Predicted:
    """Bytes on one card as the formula has them; `low` to `high` is the process."""

    allocated: float
    reserved: float
    process: float
    low: float
    high: float
    phase: str


@dataclass(frozen=True, slots=True)
class Scored:
    """One row that was compared."""

    row: Row
    work: Workload
    group: str
    """The class of the summary."""
    measured: Measured
    predicted: Predicted
    ran: bool | None
    """Whether the run went through; None where that cannot be known."""
    verdict: str
    """ "fits", "tight" or "no"; "" without a card."""
    rate_error: float | None = None
    """Predicted / measured tokens per second - 1."""
    longest: int | None = None
    """Frontier rows: the longest sequence the formula fits into the budget, 0 for none."""

    @property
    def errors(self) -> tuple[float | None, float | None, float | None]:
        """Signed relative errors of allocated, reserved and process memory."""
        pairs = (
            (self.predicted.allocated, self.measured.allocated),
            (self.predicted.reserved, self.measured.reserved),
            (self.predicted.process, self.measured.process),
        )
        return tuple(None if was is None else said / was - 1 for said, was in pairs)  # type: ignore[return-value]

    @property
    def judged_right(self) -> bool | None:
        """Whether "no" was said exactly when the run did not go through; None where nothing can be said."""
        if self.ran is None or not self.verdict:
            return None
        return (self.verdict != "no") == self.ran

    @property
    def budget_error(self) -> float | None:
        """Frontier rows: predicted process memory of the published length / budget - 1."""
        if self.longest is None or not self.row.sequence or not self.row.memory_bytes:
            return None
        return self.predicted.process / self.row.memory_bytes - 1

    @property
    def length_error(self) -> float | None:
        """Frontier rows: predicted longest sequence / published - 1."""
        if self.longest is None or not self.row.sequence:
            return None
        return self.longest / self.row.sequence - 1


@dataclass(frozen=True, slots=True)
class Skipped:
    """One row that was not compared, and why."""

    row: Row
    reason: str


def score(rows: Iterable[Row]) -> tuple[tuple[Scored, ...], tuple[Skipped, ...]]:
    """Every row either scored or skipped with its reason."""
    scored: list[Scored] = []
    skipped: list[Skipped] = []
    for row in rows:
        try:
            scored.append(_score(row))
        except NotExpressible as error:
            skipped.append(Skipped(row, str(error)))
        except EngineError as error:
            skipped.append(Skipped(row, error.what))
    return tuple(scored), tuple(skipped)


def predict(job: Mapped, card: float | None = None) -> Predicted:
    """The formula's figures for one row, on a card of `card` bytes if known.

    What the allocator has cached goes back before it fails, so a run that fits never shows more than its card has.
    """
    peak = peak_of(job.work)
    allocated = peak.weights + peak.adapter if job.state_only else peak.allocated
    if job.work.optimizer is OptimizerKind.PAGED_ADAMW_8BIT:  # unified memory, which torch does not count
        allocated -= peak.optimizer
    low, _, high = memory_bounds(job.work)
    estimate = estimate_memory(job.work)
    context = sum(part.amount for part in estimate.breakdown if "context" in part.name.lower())
    reserved = (estimate.likely - context) * (allocated / peak.allocated)
    if card is not None and allocated + context <= card < reserved + context:
        reserved = card - context
    return Predicted(allocated, reserved, reserved + context, low, high, peak.phase)


def longest_sequence(work: Workload, budget_bytes: float) -> int:
    """The longest sequence whose likely process memory fits; 0 when not even 128 tokens do."""
    low, high = 0, SHORTEST
    while high < LONGEST and _fits(work, high, budget_bytes):
        low, high = high, high * 2
    while high - low > max(low // 200, 1) and low:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(work, middle, budget_bytes) else (low, middle)
    return low


def _fits(work: Workload, sequence: int, budget_bytes: float) -> bool:
    return memory_bounds(replace(work, sequence=sequence))[1] <= budget_bytes


def _score(row: Row) -> Scored:
    job = mapped(row)
    measured = measured_of(row)
    if row.frontier:
        return _frontier(row, job)
    rate = rate_error(job)
    if not measured.anything and not row.out_of_memory and rate is None:
        raise NotExpressible("neither memory nor a rate that can be compared")
    card = card_bytes(row)
    predicted = predict(job, None if row.out_of_memory else card)
    ran = False if row.out_of_memory else (True if measured.anything else None)
    return Scored(
        row=row,
        work=job.work,
        group=class_of(row, job.stack),
        measured=measured,
        predicted=predicted,
        ran=ran,
        verdict=_verdict(predicted, card) if card else "",
        rate_error=rate,
    )


def _frontier(row: Row, job: Mapped) -> Scored:
    """A budget row: the formula is asked which length fits, and what the published length takes."""
    budget = row.memory_bytes or card_bytes(row)
    if budget is None:
        raise NotExpressible("budget not printed")
    longest = longest_sequence(job.work, budget)
    work = job.work if row.sequence else replace(job.work, sequence=SHORTEST)
    predicted = predict(replace(job, work=work))
    return Scored(
        row=row,
        work=work,
        group=class_of(row, job.stack),
        measured=Measured(),
        predicted=predicted,
        ran=bool(row.sequence),
        verdict="fits" if predicted.process <= budget else "no",
        longest=longest,
    )


def _verdict(predicted: Predicted, card: float) -> str:
    """ "no" only when even the lower bound is too large: torch gives cached segments back before it fails."""
    if predicted.high <= card:
        return "fits"
    return "tight" if min(predicted.process, predicted.low) <= card else "no"
