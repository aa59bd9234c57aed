"""A job's schedule as the object of `schedule --json`: stages, points of the curves, text, and the whole.

Owns the keys of that object, which scripts rely on. Must not compute.
"""

from __future__ import annotations

from typing import Any

from engine.advise.figures import to_json as appraisal_to_json
from engine.advise.spec_stages import JobEstimate, StageEstimate
from engine.estimate.estimate import Estimate
from engine.schedule.amounts import SourceAmount
from engine.schedule.layout import SchedulePoint, SourceShare

POINTS = 200


def to_json(job: JobEstimate) -> dict[str, Any]:
    """The object. `whole` is what `estimate --json` says of the job."""
    return {
        "steps": job.schedule.steps,
        "tokens": job.schedule.tokens,
        "stages": stages_to_json(job),
        "sources": [_source(one) for one in job.amounts],
        "points": [_point(point) for point in job.schedule.points(POINTS)],
        "warnings": list(job.warnings),
        "whole": appraisal_to_json(job.whole),
    }


def stages_to_json(job: JobEstimate) -> list[dict[str, Any]]:
    """Every stage: what it does, and what it takes."""
    return [_stage(stage) for stage in job.stages]


def _stage(stage: StageEstimate) -> dict[str, Any]:
    layout, found = stage.layout, stage.found
    return {
        "number": layout.number,
        "name": layout.name,
        "task": layout.task.value,
        "first_step": layout.first_step,
        "steps": layout.steps,
        "first_token": layout.first_token,
        "tokens": layout.tokens,
        "lengths": list(layout.lengths),
        "sequences_first": layout.ramp.sequences_of(0),
        "sequences": layout.ramp.full,
        "mix": {source.name: _share(source) for source in layout.mix},
        "schedule": layout.rate.schedule.value,
        "learning_rate": layout.peak,
        "warmup_steps": layout.rate.warmup_steps,
        "new_learning_rate": layout.new_peak if layout.has_new else None,
        "new_warmup_steps": layout.rate.new_warmup_steps if layout.has_new else None,
        "parameters": layout.model.parameters,
        "operators": list(layout.model.operators),
        "trainable": list(layout.trainable),
        "stops": list(layout.stops),
        "memory_bytes": _ends(found.memory) if found is not None else None,
        "verdict": found.verdict.value if found is not None else None,
        "hours": _ends(stage.hours),
        "cost_usd": _ends(stage.cost_usd),
        "disk_bytes": _ends(stage.disk),
    }


def _share(source: SourceShare) -> dict[str, Any]:
    passes = source.passes if source.known else None
    return {"share": source.share, "tokens": source.tokens, "passes": passes}


def _source(one: SourceAmount) -> dict[str, Any]:
    return {
        "name": one.name,
        "files": one.files,
        "size_bytes": one.size_bytes,
        "tokens": {"low": one.low, "likely": one.likely, "high": one.high},
        "origin": one.origin.value,
        "unreadable": one.unreadable,
    }


def _point(point: SchedulePoint) -> dict[str, Any]:
    return {
        "step": point.step,
        "tokens": point.tokens,
        "stage": point.stage,
        "learning_rate": point.rate,
        "new_learning_rate": point.new_rate,
        "length": point.length,
        "sequences": point.sequences,
        "mix": dict(point.shares),
        "parameters": point.parameters,
    }


def _ends(figure: Estimate) -> dict[str, Any]:
    return {"low": figure.low, "likely": figure.likely, "high": figure.high, "origin": figure.origin.value}
