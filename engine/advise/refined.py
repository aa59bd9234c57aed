"""An appraisal whose figures come from the dry run or the probe instead of the formula.

Owns putting the better figures in; everything that follows from them (verdict, ways out, money) follows. Must not know
how either is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.advise.amounts import device_of
from engine.advise.appraisal import Appraisal, appraise
from engine.errors import EngineError
from engine.estimate.calibration import Calibration
from engine.estimate.estimate import Estimate, Origin, Range
from engine.estimate.speed import estimate_tokens_per_second
from engine.jobs.spec import JobSpec
from engine.models.source import ModelRef

if TYPE_CHECKING:
    from engine.advise.probe import ProbeReport
    from engine.advise.spec_growth import SpecGrowth

LONG_HOURS = 0.5
"""From here on a minute of measuring first is well spent."""


def is_long(hours: Estimate) -> bool:
    """Whether a run is long enough to be measured before it starts."""
    return hours.high >= LONG_HOURS


def by_dry_run(found: Appraisal, spec: JobSpec, growth: SpecGrowth | None = None) -> Appraisal:
    """The appraisal with the dry run's memory; of the grown model where the spec grows it. Raises EngineError
    `dry_run.*`."""
    from engine.advise.dry_run import dry_run

    memory = dry_run(spec, found.plan.final, found.machine, growth=growth)
    return appraise(found.plan, found.machine, found.load, memory=memory)


def by_probe(
    found: Appraisal,
    spec: JobSpec,
    ref: ModelRef,
    *,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Appraisal:
    """The appraisal with the probe's memory and speed. Raises EngineError `probe.*`, also on a what-if machine."""
    if found.machine.simulated:
        raise EngineError(
            "probe.simulated",
            "A probe measures this machine; a simulated one cannot be measured.",
            next_step="Leave --gpu out, or use --dry-run.",
        )
    if spec.grows:
        raise EngineError(
            "probe.grown",
            "The larger model does not exist yet, so it cannot be measured.",
            next_step='Use --dry-run; or grow it first (task = "expand") and probe a spec that trains the result.',
        )
    from engine.advise.probe import probe

    report = probe(spec, found.plan.final, ref, found.machine, force=force, progress=progress)
    plan = replace(found.plan, calibration=_with_speed(found, report))
    return appraise(plan, found.machine, found.load, memory=report.memory)


def _with_speed(found: Appraisal, report: ProbeReport) -> Calibration | None:
    """What holds on this machine from now on, and for this job the speed that was measured of it."""
    formula = estimate_tokens_per_second(found.plan.work, device_of(found.plan, found.machine)).likely
    measured = report.tokens_per_second
    if not (measured.likely and formula):
        return report.calibration
    known = report.calibration or Calibration(Origin.PROBE, f"measured on {report.record.machine.words}")
    speed = Range(measured.low / formula, measured.likely / formula, measured.high / formula)
    return replace(known, origin=Origin.PROBE, speed_factor=speed)
