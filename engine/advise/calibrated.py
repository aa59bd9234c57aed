"""What probes and past runs on this machine teach the formula: the corrections in force.

Owns how evidence becomes ranges. The formula keeps its structure: corrections go through `Calibration` only. Must not
know how anything is measured. Evidence of another device, driver or library version is left out.

On a card every quantity is observed by itself: context, reserved / allocated, allocated / formula. On a CPU only a sum
is seen, resident = libraries + allocated·(1 + slack), with a different `allocated` from job to job. Two unknowns, each
with what was believed before, are brought up to date by every observation (two-dimensional Gaussian update): a small
job teaches the libraries, a large one the slack, and neither is stretched to explain the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from engine.estimate.calibration import Calibration
from engine.estimate.estimate import Origin, Range
from engine.estimate.process import LIBRARY_BYTES, SLACK_CPU
from engine.hardware.identity import Identity, identity_of
from engine.hardware.machine import Machine
from engine.jobs.probes import ProbeRecord, load_probes, probes_dir, probes_stamp
from engine.jobs.scores import Score, read_scores, scores_path, scores_stamp

LEAST_SPREAD = 0.02
"""No figure is known better than this, on either side: two runs of one job differ by as much."""
ONE_JOB_SPEED_SPREAD = 0.15
"""Half width of the speed where only one model was measured: another one meets other limits of the machine."""
SPEED_SPREAD = 0.05
LATEST_RUNS = 30
READING_ERROR = 0.01
"""Of resident memory: standard deviation between two runs of one job."""
RESIDENT_CREEP = 1.02
"""Resident memory of a whole run over that of its first half minute on a CPU: arenas, checkpoints and later measuring
added 1 to 4 % in three runs of the demo."""
CONTEXT_ERROR = 0.15
"""Of a reading of the libraries alone: how much of them a longer run still loads differs."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured on one machine with its present libraries."""

    machine: Identity
    probes: tuple[ProbeRecord, ...]
    """Newest first."""
    scores: tuple[Score, ...]
    """Oldest first; runs that ran out of memory are not among them."""
    calibration: Calibration | None
    notes: tuple[str, ...]
    """What could not be read."""


def calibration_of(machine: Machine) -> Calibration | None:
    """The corrections in force; None on a simulated machine and where nothing was measured."""
    if machine.simulated:
        return None
    if not probes_stamp() and scores_stamp() == (0, 0):
        return None
    return evidence_of(machine).calibration


def evidence_of(machine: Machine) -> Evidence:
    """Everything known about `machine`. Damaged files are set aside and named, nothing is raised."""
    identity = identity_of(machine)
    key = identity.digest, str(probes_dir()), probes_stamp(), str(scores_path()), scores_stamp()
    return _evidence(_Keyed(identity, key))


@dataclass(frozen=True, slots=True, eq=False)
class _Keyed:
    """An identity that is compared by what is known about it, so that files are read when they have changed."""

    identity: Identity
    key: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=8)
def _evidence(keyed: _Keyed) -> Evidence:
    records, probe_notes = load_probes()
    book = read_scores()
    identity = keyed.identity
    probes = tuple(record for record in records if record.machine == identity)
    scores = tuple(
        score for score in book.scores if score.machine == identity and score.outcome in ("finished", "stopped")
    )
    calibration = _calibration(probes, scores[-LATEST_RUNS:])
    return Evidence(identity, probes, scores, calibration, (*probe_notes, *book.notes))


def _calibration(probes: Sequence[ProbeRecord], scores: Sequence[Score]) -> Calibration | None:
    if not probes and not scores:
        return None
    on_cpu = probes[0].answer.on_cpu if probes else scores[-1].on_cpu
    origin = Origin.MEASURED if scores else Origin.PROBE
    speed = _speed(probes, scores)
    context, slack, factor = _resident(probes, scores) if on_cpu else _on_card(probes, scores)
    if context is None and slack is None and factor is None and speed is None:
        return None
    return Calibration(origin, _source(probes, scores), context, slack, factor, speed)


def _source(probes: Sequence[ProbeRecord], scores: Sequence[Score]) -> str:
    parts = []
    if probes:
        parts.append(f"probe of {time.strftime('%Y-%m-%d', time.gmtime(probes[0].t))}")
    if scores:
        parts.append(f"{len(scores)} run{'s' if len(scores) != 1 else ''}")
    identity = (probes[0] if probes else scores[-1]).machine
    return f"{' and '.join(parts)} on {identity.words}"


# ── a card: everything is seen by itself ──────────────────────────────────────────────────────────────────────────
def _on_card(probes: Sequence[ProbeRecord], scores: Sequence[Score]) -> tuple[Range | None, Range | None, Range | None]:
    """(context, slack, allocated factor)."""
    contexts = [record.answer.context_bytes for record in probes[:1] if record.answer.context_bytes > 0]
    contexts += [score.context_bytes for score in scores if score.context_bytes > 0]
    ratios, factors = [], []
    for record in probes:
        for shape, formula in zip(record.answer.shapes, record.formula, strict=False):
            if shape.allocated_bytes > 0 and formula.allocated_bytes > 0:
                ratios.append(max(shape.reserved_bytes / shape.allocated_bytes, 1.0))
                factors.append(shape.allocated_bytes / formula.allocated_bytes)
    for score in scores:
        allocated, reserved = score.allocated.measured, score.reserved.measured
        if allocated > 0 and score.formula_allocated_bytes > 0:
            ratios.append(max(reserved / allocated, 1.0))
            factors.append(allocated / score.formula_allocated_bytes)
    over = spread(ratios)
    slack = None if over is None else Range(max(over.low - 1, 0.0), over.likely - 1, over.high - 1)
    return spread(contexts), slack, spread(factors)


def spread(values: Sequence[float], least: float = LEAST_SPREAD) -> Range | None:
    """Median, and from the lowest to the highest but at least `least` of it to each side; None without values."""
    if not values:
        return None
    middle = _median(values)
    return Range(min(min(values), middle * (1 - least)), middle, max(max(values), middle * (1 + least)))


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


# ── a processor: only the sum is seen ─────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class _Belief:
    """Gaussian belief about (libraries in bytes, slack): means and covariance."""

    context: float
    slack: float
    context_variance: float
    slack_variance: float
    covariance: float = 0.0

    def seen(self, context_weight: float, slack_weight: float, observed: float, error: float) -> _Belief:
        """After observing context_weight·context + slack_weight·slack = observed ± error (Kalman update)."""
        towards_context = self.context_variance * context_weight + self.covariance * slack_weight
        towards_slack = self.covariance * context_weight + self.slack_variance * slack_weight
        total = towards_context * context_weight + towards_slack * slack_weight + error**2
        surprise = observed - context_weight * self.context - slack_weight * self.slack
        return _Belief(
            self.context + towards_context * surprise / total,
            self.slack + towards_slack * surprise / total,
            max(self.context_variance - towards_context**2 / total, 0.0),
            max(self.slack_variance - towards_slack**2 / total, 0.0),
            self.covariance - towards_context * towards_slack / total,
        )


def _resident(
    probes: Sequence[ProbeRecord], scores: Sequence[Score]
) -> tuple[Range | None, Range | None, Range | None]:
    """(libraries, slack, nothing): the defaults' ranges as four standard deviations, then every observation."""
    belief = _Belief(
        LIBRARY_BYTES.likely,
        SLACK_CPU.likely,
        ((LIBRARY_BYTES.high - LIBRARY_BYTES.low) / 4) ** 2,
        ((SLACK_CPU.high - SLACK_CPU.low) / 4) ** 2,
    )
    if probes and probes[0].answer.context_bytes > 0:
        context = probes[0].answer.context_bytes
        belief = belief.seen(1.0, 0.0, context, CONTEXT_ERROR * context)
    for record in reversed(probes):
        for shape, formula in zip(record.answer.shapes, record.formula, strict=False):
            belief = _resident_seen(belief, formula.allocated_bytes, RESIDENT_CREEP * shape.process_bytes)
    for score in scores:
        belief = _resident_seen(belief, score.formula_allocated_bytes, score.process.measured)
    context_width = max(2 * math.sqrt(belief.context_variance), LEAST_SPREAD * belief.context)
    slack_width = max(2 * math.sqrt(belief.slack_variance), LEAST_SPREAD)
    return (
        Range(belief.context - context_width, belief.context, belief.context + context_width),
        Range(belief.slack - slack_width, belief.slack, belief.slack + slack_width),
        None,
    )


def _resident_seen(belief: _Belief, allocated: float, resident: float) -> _Belief:
    """resident - allocated = libraries + allocated·slack."""
    if allocated <= 0 or resident <= 0:
        return belief
    return belief.seen(1.0, allocated, resident - allocated, READING_ERROR * resident)


# ── speed ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _speed(probes: Sequence[ProbeRecord], scores: Sequence[Score]) -> Range | None:
    """Measured over predicted: the newest probe's and the runs', in the middle of all; wide when of one model only."""
    ratios, models = [], set()
    for record in probes[:3]:
        for shape, formula in zip(record.answer.shapes, record.formula, strict=False):
            if shape.tokens_per_second > 0 and formula.tokens_per_second > 0:
                ratios.append(shape.tokens_per_second / formula.tokens_per_second)
                models.add(record.model)
    for score in scores:
        if score.tokens_per_second.measured > 0 and score.formula_tokens_per_second > 0:
            ratios.append(score.tokens_per_second.measured / score.formula_tokens_per_second)
            models.add(score.model)
    return spread(ratios, ONE_JOB_SPEED_SPREAD if len(models) < 2 else SPEED_SPREAD)
