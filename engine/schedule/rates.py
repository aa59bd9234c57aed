"""The learning rate over the steps of a stage, as a factor of its peak.

Owns the curves. Must not know optimizers or tokens: a worker hands `factor` to LambdaLR, a screen draws it. cosine,
linear and constant are, to the bit, those of transformers' `get_scheduler` (a test compares them).

    peak ─┐      ________________                 wsd: warm up, stay, decay
          │     /                \\                step    0 .. warm .. steady .. steps
    floor ┘____/                  \\____
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from engine.jobs.spec import TrainingSection
from engine.jobs.spec_section import Schedule

WarmUp = tuple[int, int]
"""(step at which a parameter begins to learn, steps of its warm-up)."""


@dataclass(frozen=True, slots=True)
class RateCurve:
    """The factors of a stage. Steps count from 0, the first of the stage."""

    schedule: Schedule
    steps: int
    warmup_ratio: float
    """Share of the steps."""
    decay_ratio: float = 0.2
    """wsd only: share of the steps at the end."""
    final_ratio: float = 0.0
    """What the rate falls to, as a share of the peak."""
    new_warmup_ratio: float = 0.0
    """Of parameters that growth added; 0 is `warmup_ratio`."""
    old_from: int = 0
    """Step at which old entries join (new_coordinates); they warm up then."""

    @property
    def warmup_steps(self) -> int:
        """Of everything that learns from the first step on and is not new."""
        return math.ceil(self.steps * self.warmup_ratio)

    @property
    def new_warmup_steps(self) -> int:
        """Of new parameters; only they warm up so long."""
        return math.ceil(self.steps * (self.new_warmup_ratio or self.warmup_ratio))

    def factor(self, step: int) -> float:
        """Of parameters that growth did not add. Before `old_from` it is 0."""
        if step < self.old_from:
            return 0.0
        warm = math.ceil((self.steps - self.old_from) * self.warmup_ratio)
        return self._at(step, (self.old_from, warm))

    def new_factor(self, step: int) -> float:
        """Of parameters that growth added: a warm-up of their own, after which they decay as the others do."""
        return self._at(step, (0, self.new_warmup_steps))

    def _at(self, step: int, warm_up: WarmUp) -> float:
        """Linear warm-up from 0; a rate that decays meanwhile is scaled by it."""
        joined, warm = warm_up
        begin = self.warmup_steps if self.old_from else warm
        decay = _DECAYS[self.schedule](self, step, begin)
        since = step - joined
        return decay * (float(since) / float(max(1, warm))) if since < warm else decay

    def _towards_floor(self, share: float) -> float:
        """`share` of the way from the floor to the peak."""
        return max(0.0, share * (1 - self.final_ratio) + self.final_ratio)


def _cosine(curve: RateCurve, step: int, begin: int) -> float:
    """SGDR without restarts (Loshchilov & Hutter, arXiv 1608.03983)."""
    if step < begin:
        return 1.0
    progress = min(float(step - begin) / float(max(1, curve.steps - begin)), 1.0)
    return curve._towards_floor(max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress))))


def _linear(curve: RateCurve, step: int, begin: int) -> float:
    if step < begin:
        return 1.0
    return curve._towards_floor(max(0.0, float(curve.steps - step) / float(max(1, curve.steps - begin))))


def _constant(curve: RateCurve, step: int, begin: int) -> float:
    return 1.0


def _wsd(curve: RateCurve, step: int, begin: int) -> float:
    """Stay at the peak (MiniCPM, arXiv 2404.06395), then fall as 1 - sqrt of the decay done (Haegele et al., arXiv
    2405.18392, where that shape gave the lowest loss)."""
    decaying = curve.steps - decay_steps(curve.steps, curve.decay_ratio, begin)
    if step < decaying:
        return 1.0
    progress = float(step - decaying) / float(curve.steps - decaying) if step < curve.steps else 1.0
    return curve._towards_floor(1.0 - math.sqrt(progress))


_DECAYS: dict[Schedule, Callable[[RateCurve, int, int], float]] = {
    Schedule.COSINE: _cosine,
    Schedule.LINEAR: _linear,
    Schedule.CONSTANT: _constant,
    Schedule.WSD: _wsd,
}


def decay_steps(steps: int, decay_ratio: float, warmup_steps: int) -> int:
    """Steps of wsd's decay; it begins no earlier than the warm-up ends."""
    return max(min(math.ceil(steps * decay_ratio), steps - warmup_steps), 0)


def rate_curve(training: TrainingSection, steps: int, *, old_from: int = 0) -> RateCurve:
    """The curve of a stage of `steps` optimizer steps."""
    return RateCurve(
        schedule=training.schedule,
        steps=steps,
        warmup_ratio=training.warmup_ratio,
        decay_ratio=training.decay_ratio,
        final_ratio=training.final_rate_ratio,
        new_warmup_ratio=training.new_warmup_ratio,
        old_from=old_from,
    )


def unfreeze_step(training: TrainingSection, steps: int) -> int:
    """The step of the stage at which old coordinates join (new_coordinates); `steps` for never."""
    after = training.unfreeze_after
    if after == 0:
        return steps
    return min(math.ceil(after * steps) if after < 1 else int(after), steps)
