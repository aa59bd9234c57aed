"""What each stage did, counted from a journal: resumes and recoveries take back what they make void."""

from __future__ import annotations

import itertools
import random

import pytest

from engine.jobs import events as ev
from engine.jobs.stage_figures import StageFigures, stage_figures


def step(number: int, loss: float = 2.0, wait: float = 0.1) -> ev.Step:
    return ev.Step(
        t=float(number), step=number, loss=loss, learning_rate=1e-4, grad_norm=1.0, tokens=100, trained_tokens=100,
        step_seconds=2.0, wait_seconds=wait, domains={"web": 70, "code": 30},
    )  # fmt: skip


def begin(index: int, first_step: int, name: str = "") -> ev.Stage:
    return ev.Stage(t=0, index=index, count=3, name=name, task="full", first_step=first_step)


def told(*events: ev.AnyEvent) -> tuple[StageFigures, ...]:
    return stage_figures(events)


def test_steps_tokens_time_and_waiting_belong_to_their_stage() -> None:
    first, second = told(
        begin(1, 0, "short"), *map(step, range(1, 11)), begin(2, 10, "wider"), *map(step, range(11, 16))
    )
    assert (first.name, first.steps, first.tokens, first.domains) == ("short", 10, 1000, {"web": 700, "code": 300})
    assert (second.first_step, second.steps, second.training_seconds) == (10, 5, 10.0)
    assert second.wait_share == pytest.approx(0.05)


def test_a_stage_that_only_grows_has_no_steps() -> None:
    first, second = told(begin(1, 0), begin(2, 0), step(1), step(2))
    assert (first.steps, first.loss_first) == (0, None)
    assert second.steps == 2


def test_losses_are_those_of_the_first_and_the_last_tenth() -> None:
    events = [step(n, loss=10.0 - n / 10) for n in range(1, 41)]
    (whole,) = told(ev.Eval(t=0, step=0, loss=9.0), *events, ev.Eval(t=0, step=40, loss=5.0))
    assert whole.stage == 0
    assert whole.loss_first == pytest.approx(9.75)
    assert whole.loss_last == pytest.approx(6.15)
    assert (whole.eval_first, whole.eval_last) == (9.0, 5.0)


def test_a_job_that_never_stepped_has_no_figures() -> None:
    assert told(ev.Start(t=0, attempt=1, pid=1)) == ()


def test_killed_runs_and_recoveries_count_as_the_uninterrupted_one() -> None:
    whole = [begin(1, 0), *map(step, range(1, 21)), begin(2, 20), *map(step, range(21, 41))]
    noise = random.Random(3)
    for _ in range(20):
        torn: list[ev.AnyEvent] = []
        reached, stage = 0, 1
        for attempt in itertools.count(1):
            torn.append(ev.Start(t=0, attempt=attempt, pid=1, resumed_step=reached))
            torn.append(begin(stage, 20 * (stage - 1)))
            until = 40 if attempt > 5 else min(reached + noise.randrange(1, 25), 40)
            for number in range(reached + 1, until + 1):
                if number == 21:
                    stage = 2
                    torn.append(begin(2, 20))
                torn.append(step(number))
            if until == 40:
                break
            reached = max(until - noise.randrange(0, 4), 0)
            stage = 2 if reached > 20 else 1
        assert told(*torn) == told(*whole)


def test_a_recovery_is_counted_in_its_stage_and_what_it_undoes_is_not() -> None:
    spike = ev.Recovery(t=0, step=15, trouble="loss spike", what="", back_to_step=12, remedy="")
    first, second = told(
        begin(1, 0), *map(step, range(1, 11)), begin(2, 10), *map(step, range(11, 16)), spike, *map(step, range(13, 21))
    )
    assert (first.recoveries, second.recoveries) == (0, 1)
    assert (first.steps, second.steps, second.tokens) == (10, 10, 1000)
