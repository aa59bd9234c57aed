"""The learning-rate curves against transformers' own schedulers, to the bit."""

from __future__ import annotations

from typing import Any

import pytest

from engine.jobs.spec import Schedule
from engine.schedule.rates import RateCurve, decay_steps

pytestmark = pytest.mark.slow


def factors_of_transformers(name: str, warm: int, steps: int, **settings: Any) -> list[float]:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warm, num_training_steps=steps, scheduler_specific_kwargs=settings or None
    )
    found = []
    for _ in range(steps + 1):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("steps", [1, 30, 97, 1000])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.1])
def test_every_curve_is_that_of_transformers(steps: int, warmup_ratio: float) -> None:
    for schedule in (Schedule.COSINE, Schedule.LINEAR, Schedule.CONSTANT):
        curve = RateCurve(schedule, steps, warmup_ratio)
        name = "constant_with_warmup" if schedule is Schedule.CONSTANT else schedule.value
        theirs = factors_of_transformers(name, curve.warmup_steps, steps)
        assert [curve.factor(step) for step in range(steps + 1)] == theirs, schedule
    curve = RateCurve(Schedule.COSINE, steps, warmup_ratio, final_ratio=0.1)
    theirs = factors_of_transformers("cosine_with_min_lr", curve.warmup_steps, steps, min_lr_rate=0.1)
    assert [curve.factor(step) for step in range(steps + 1)] == theirs
    curve = RateCurve(Schedule.WSD, steps, warmup_ratio, decay_ratio=0.2)
    falling = decay_steps(steps, 0.2, curve.warmup_steps)
    theirs = factors_of_transformers(
        "warmup_stable_decay", curve.warmup_steps, steps, num_decay_steps=falling, decay_type="1-sqrt"
    )
    assert [curve.factor(step) for step in range(steps + 1)] == theirs
