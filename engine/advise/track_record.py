"""The book of scores as people read it: runs, errors per machine, and the correction in force on this one.

Owns the sums over runs. Must not know screens, nor how a correction is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.advise.calibrated import evidence_of
from engine.estimate.calibration import Calibration
from engine.hardware.machine import Machine
from engine.jobs.probes import ProbeRecord, probes_dir
from engine.jobs.scores import Promise, Score, read_scores, scores_path
from engine.units import format_bytes


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Signed errors of one quantity: predicted over measured, less 1."""

    runs: int
    mean: float
    worst: float
    """The largest in size, with its sign."""
    inside: int
    """Runs whose measured figure lay in the predicted range."""

    @property
    def words(self) -> str:
        """ "mean +1.2 %, worst -4.0 %, 3 of 4 in range"."""
        return f"mean {self.mean:+.1%}, worst {self.worst:+.1%}, {self.inside} of {self.runs} in range"


@dataclass(frozen=True, slots=True)
class MachineSummary:
    """All runs of one device with one set of libraries."""

    machine: str
    memory: ErrorSummary | None
    tokens_per_second: ErrorSummary | None
    seconds: ErrorSummary | None

    @property
    def sentence(self) -> str:
        """One line; a quantity that was never both predicted and measured is left out."""
        parts = (("memory", self.memory), ("tokens/s", self.tokens_per_second), ("time", self.seconds))
        said = [f"{name} {summary.words}" for name, summary in parts if summary is not None]
        return f"{self.machine}: {'; '.join(said) or 'nothing to compare'}"


@dataclass(frozen=True, slots=True)
class ProbeSummary:
    """One kept probe of this machine."""

    t: float
    model: str
    sentence: str


@dataclass(frozen=True, slots=True)
class TrackRecord:
    """Everything `scores` shows."""

    scores: tuple[Score, ...]
    """Oldest first, of every machine."""
    summaries: tuple[MachineSummary, ...]
    machine: str
    calibration: Calibration | None
    probes: tuple[ProbeSummary, ...]
    scores_file: str
    probes_folder: str
    notes: tuple[str, ...]


def track_record(machine: Machine) -> TrackRecord:
    """Read both books. Damaged entries are named in `notes`; nothing is raised."""
    evidence = evidence_of(machine)
    scores = read_scores().scores
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(score.machine.words, []).append(score)
    return TrackRecord(
        scores=scores,
        summaries=tuple(_summary(words, group) for words, group in groups.items()),
        machine=evidence.machine.words,
        calibration=evidence.calibration,
        probes=tuple(ProbeSummary(record.t, record.model, _probe_words(record)) for record in evidence.probes),
        scores_file=str(scores_path()),
        probes_folder=str(probes_dir()),
        notes=evidence.notes,
    )


def _summary(words: str, scores: Sequence[Score]) -> MachineSummary:
    ended = [score for score in scores if score.outcome != "out of memory"]
    return MachineSummary(
        words,
        error_summary([score.process for score in ended]),
        error_summary([score.tokens_per_second for score in ended]),
        error_summary([score.seconds for score in ended]),
    )


def error_summary(promises: Sequence[Promise]) -> ErrorSummary | None:
    """None when nothing was both predicted and measured."""
    complete = [promise for promise in promises if promise.complete]
    if not complete:
        return None
    errors = [promise.error for promise in complete]
    return ErrorSummary(
        runs=len(errors),
        mean=sum(errors) / len(errors),
        worst=max(errors, key=abs),
        inside=sum(promise.inside for promise in complete),
    )


def _probe_words(record: ProbeRecord) -> str:
    """ "demo, 4 x 256 tokens: 675 MiB, 2,053 tokens/s, up to 299 rows at a time"."""
    answer = record.answer
    if not answer.shapes:
        return f"{record.model}: it did not fit"
    own = answer.shapes[0]
    memory = f"{format_bytes(own.process_bytes)}, " if own.process_bytes else ""
    words = f"{record.model}, {own.batch} x {own.sequence:,} tokens: {memory}{own.tokens_per_second:,.0f} tokens/s"
    largest = answer.largest
    if largest is None:
        return words
    unit = "rows at a time" if largest.kind == "batch" else "tokens at a time"
    return f"{words}, up to {largest.value:,} {unit}"
