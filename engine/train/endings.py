"""Rules that end a stage, or the job, before its last step.

Owns which rules hold for what: held-out loss and plateau end the stage, as do hours and money that the stage itself is
given; hours and money of [stop] are the whole job's. Must not know the loop (`engine.train.loop`), nor how a rule
decides (`engine.schedule.stops`).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from engine.jobs.spec import JobSpec
from engine.jobs.spec_stop import StopSection
from engine.schedule.stops import Ended, ended_by_loss, ended_by_spending
from engine.train.tally import Tally


@dataclass(frozen=True, slots=True)
class Rules:
    """Of one stage, or of a job that has none."""

    stage: StopSection
    job: StopSection
    usd_per_hour: float
    is_last: bool
    """No training comes after this stage: what ends the job only ends this."""

    def stage_ends(self, tally: Tally, worked_seconds: float, *, evaluated: bool) -> Ended | None:
        """After a step. `worked_seconds`: of the job, over all attempts."""
        found = ended_by_loss(self.stage, tally.eval_losses) if evaluated else None
        own_seconds = worked_seconds - tally.stage_worked_from
        found = found or ended_by_spending(self.stage, own_seconds, self.usd_per_hour)
        if found is None and self.is_last:
            return ended_by_spending(self.job, worked_seconds, self.usd_per_hour)
        return found

    def job_ends(self, worked_seconds: float) -> Ended | None:
        """After a step of a stage that others follow: they are not begun then."""
        return None if self.is_last else ended_by_spending(self.job, worked_seconds, self.usd_per_hour)


def rules_of(spec: JobSpec, index: int = 0) -> Rules:
    """`spec` is the whole job's, `index` the stage's."""
    staged = spec.staged()
    own = spec.stages[index] if spec.stages else None
    hours, usd = (own.stop_hours or 0.0, own.stop_usd or 0.0) if own is not None else (0.0, 0.0)
    return Rules(
        stage=msgspec.structs.replace(staged[index].stop, hours=hours, usd=usd),
        job=spec.stop,
        usd_per_hour=spec.usd_per_hour,
        is_last=not any(later.task.trains for later in staged[index + 1 :]),
    )
