"""What in a schedule works and is seldom meant.

Owns the words. Must not refuse: what cannot work is refused by the checks of the spec.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from engine.jobs.spec_section import Schedule
from engine.schedule.rates import decay_steps
from engine.units import format_count

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec
    from engine.schedule.layout import StageLayout

MANY_PASSES = 4.0
"""Up to about four passes repeated text is worth almost as much as new text (Muennighoff et al., arXiv 2305.16264)."""
LEAP = 3.0
"""A rate that rises by more than this from one step to the next, without a warm-up."""


def warnings_of(spec: JobSpec, stages: Sequence[StageLayout]) -> tuple[str, ...]:
    """For people; an empty tuple is a schedule with nothing to say about."""
    trained = [stage for stage in stages if stage.steps]
    found: list[str] = [*_passes(trained), *_unread(spec, trained)]
    for stage in trained:
        found += _of_stage(stage, _called(stage) if spec.stages else "The job")
    for before, after in pairwise(trained):
        found += _leap(before, after)
    return tuple(found)


def _called(stage: StageLayout) -> str:
    return f"Stage {stage.number}{f' ({stage.name})' if stage.name else ''}"


def _passes(stages: Sequence[StageLayout]) -> Iterator[str]:
    total: dict[str, float] = {}
    for stage in stages:
        for source in stage.mix:
            total[source.name] = total.get(source.name, 0.0) + source.passes
    for name, passes in total.items():
        if passes > MANY_PASSES:
            yield (
                f"{name} is read {passes:.1f} times: beyond about {MANY_PASSES:.0f} passes repeated text teaches ever "
                "less. Lower its weight, or add text."
            )


def _unread(spec: JobSpec, stages: Sequence[StageLayout]) -> Iterator[str]:
    read = {source.name for stage in stages for source in stage.mix}
    for source in spec.sources:
        if source.name not in read:
            yield f"{source.name} has weight 0 in every stage: it is never read."


def _of_stage(stage: StageLayout, called: str) -> Iterator[str]:
    curve = stage.rate
    if curve.warmup_ratio and stage.steps > 1 and curve.warmup_steps == stage.steps:
        yield f"{called} warms up in all of its {stage.steps} steps."
    if curve.schedule is Schedule.WSD:
        asked = round(curve.steps * curve.decay_ratio)
        if decay_steps(curve.steps, curve.decay_ratio, curve.warmup_steps) < asked:
            yield f"{called}: warm-up and decay overlap; the decay begins when the warm-up ends."
    if stage.ramp.over and stage.ramp.full_from >= stage.steps:
        yield f"{called} ends before its batch has grown to {stage.ramp.full} sequences."
    if stage.model.window and stage.length > stage.model.window and stage.mix:
        yield (
            f"{called} trains {format_count(stage.length)} tokens at once, the model was made for "
            f"{format_count(stage.model.window)}: positions beyond are new to it."
        )


def _leap(before: StageLayout, after: StageLayout) -> Iterator[str]:
    ends, begins = before.rate_at(before.steps - 1), after.rate_at(0)
    if begins > LEAP * max(ends, 1e-12) and not after.rate.warmup_steps:
        yield (
            f"{_called(after)} begins at a learning rate of {begins:.1e} where stage {before.number} ended at "
            f"{ends:.1e}, without a warm-up."
        )
