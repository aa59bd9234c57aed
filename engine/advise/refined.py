"""An appraisal whose figures come from the dry run or the probe instead of the formula.

Owns putting the better figures in; everything that follows from them (verdict, ways out, money) follows. Must not know
how either is done.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.advise.appraisal import Appraisal, appraise
from engine.errors import EngineError
from engine.estimate.estimate import Estimate
from engine.jobs.spec import JobSpec
from engine.models.source import ModelRef

LONG_HOURS = 0.5
"""From here on a minute of measuring first is well spent."""


def is_long(hours: Estimate) -> bool:
    """Whether a run is long enough to be measured before it starts."""
    return hours.high >= LONG_HOURS


def by_dry_run(found: Appraisal, spec: JobSpec) -> Appraisal:
    """The appraisal with the dry run's memory. Raises EngineError `dry_run.*`."""
    from engine.advise.dry_run import dry_run

    return appraise(found.plan, found.machine, found.load, memory=dry_run(spec, found.plan.final, found.machine))


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
    from engine.advise.probe import probe

    report = probe(spec, found.plan.final, ref, found.machine, force=force, progress=progress)
    return appraise(found.plan, found.machine, found.load, memory=report.memory)
