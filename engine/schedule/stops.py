"""When a job ends before its last step, and what counts as a leap of the loss: decisions from figures alone.

Owns the rules. Must not know the loop, journals or clocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from engine.jobs.spec_stop import StopSection
from engine.units import format_usd


@dataclass(frozen=True, slots=True)
class Ended:
    """A rule that says: no further step."""

    rule: str
    """ "loss", "plateau", "hours" or "usd": the key in [stop]."""
    words: str


def ended_by_loss(rules: StopSection, losses: Sequence[float]) -> Ended | None:
    """After an evaluation. `losses`: held-out loss of every evaluation of the stage, nats per token, oldest first."""
    if rules.loss and losses and losses[-1] <= rules.loss:
        return Ended("loss", f"The held-out loss reached {losses[-1]:.4f}; stop.loss is {rules.loss:g}.")
    count = rules.plateau_evaluations
    if not count or len(losses) <= count:
        return None
    gain = plateau_gain(losses, count)
    if gain < rules.plateau_gain:
        words = f"The last {count} evaluations brought {100 * gain:.2f} % of the held-out loss together"
        return Ended("plateau", f"{words}; stop.plateau_gain is {100 * rules.plateau_gain:g} %.")
    return None


def plateau_gain(losses: Sequence[float], count: int) -> float:
    """How much lower the best of the last `count` losses is than the best before, as a share of that; never below 0."""
    before, last = min(losses[:-count]), min(losses[-count:])
    return max(before - last, 0.0) / before if before > 0 else 0.0


def ended_by_spending(rules: StopSection, worked_seconds: float, usd_per_hour: float) -> Ended | None:
    """After any step. `worked_seconds`: with a worker alive, over all attempts, of what the rules are about (the job,
    or the stage)."""
    hours = worked_seconds / 3600
    if rules.hours and hours >= rules.hours:
        return Ended("hours", f"{hours:.2f} hours have passed; stop.hours is {rules.hours:g}.")
    spent = hours * usd_per_hour
    if rules.usd and usd_per_hour > 0 and spent >= rules.usd:
        return Ended("usd", f"{format_usd(spent)} is spent; stop.usd is {format_usd(rules.usd)}.")
    return None


def is_spike(rules: StopSection, loss: float, recent: Sequence[float]) -> bool:
    """Whether `loss` leaps: no number, or above spike_factor times the median of `recent` (the losses of the steps
    before, good ones only; at least four)."""
    if not math.isfinite(loss):
        return True
    window = recent[-rules.spike_window :]
    return bool(rules.spike_factor) and len(window) >= 4 and loss > rules.spike_factor * median(window)


def rule_words(rules: StopSection) -> tuple[str, ...]:
    """The rules that are on, for a table."""
    words = []
    if rules.loss:
        words.append(f"held-out loss ≤ {rules.loss:g}")
    if rules.plateau_evaluations:
        words.append(f"{rules.plateau_evaluations} evaluations with < {100 * rules.plateau_gain:g} % gain")
    if rules.hours:
        words.append(f"{rules.hours:g} h")
    if rules.usd:
        words.append(format_usd(rules.usd))
    return tuple(words)
