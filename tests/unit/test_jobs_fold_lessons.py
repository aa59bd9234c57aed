"""What a teacher adds to the state of a run: parts of the loss, own answers and their speed, rewound with the run."""

from __future__ import annotations

import pytest

from engine.jobs import events as ev
from engine.jobs.fold import Fold


def step(number: int, **losses: float) -> ev.Step:
    return ev.Step(
        t=10.0 + number, step=number, loss=1.0, learning_rate=1e-3, grad_norm=1.0, tokens=100, trained_tokens=40,
        step_seconds=1.0, losses=losses,
    )  # fmt: skip


def rollout(number: int, tokens: int = 60, seconds: float = 2.0) -> ev.Rollout:
    return ev.Rollout(t=9.5 + number, step=number, answers=4, tokens=tokens, seconds=seconds, prompt="p", text="t")


def begun() -> list[ev.AnyEvent]:
    return [
        ev.Start(t=1.0, attempt=1, pid=1),
        ev.Teacher(t=2.0, name="demo", held="nf4", parameters=7),
        step(1, labels=3.0, teacher=0.5),
        rollout(2),
        step(2, teacher=0.4),
        step(3, labels=2.0, teacher=0.3),
        rollout(4, tokens=30, seconds=4.0),
        step(4, teacher=0.2),
    ]


def folded(events: list[ev.AnyEvent]) -> Fold:
    fold = Fold()
    fold.apply_all(events)
    return fold


def test_parts_of_the_loss_and_own_answers_are_in_the_state() -> None:
    lessons = folded(begun()).state.findings.lessons
    assert lessons.teacher is not None
    assert (lessons.teacher.name, lessons.teacher.held) == ("demo", "nf4")
    assert lessons.losses == {"teacher": 0.2}
    assert [bucket.last_step for bucket in lessons.curves["labels"].buckets()] == [1, 3]
    assert [bucket.mean for bucket in lessons.curves["teacher"].buckets()] == pytest.approx([0.5, 0.4, 0.3, 0.2])
    assert lessons.rollout is not None
    assert lessons.rollout.step == 4
    assert (lessons.rollout_tokens, lessons.rollout_seconds) == (90, 6.0)
    assert lessons.rollout_tokens_per_second == pytest.approx(15.0)


def test_a_resume_voids_what_came_after_its_checkpoint() -> None:
    again = [
        ev.Start(t=30.0, attempt=2, pid=2, resumed_step=3),
        rollout(4, tokens=31, seconds=1.0),
        step(4, teacher=0.25),
    ]
    lessons = folded([*begun(), *again]).state.findings.lessons
    assert lessons.rollout_tokens == 91
    assert lessons.losses == {"teacher": 0.25}
    rewound = folded([*begun(), *again[:1]]).state.findings.lessons
    assert (rewound.rollout_tokens, rewound.rollout) == (60, None)
    assert rewound.teacher is not None, "who teaches is no question of steps"


def test_answers_whose_step_was_lost_count_once() -> None:
    """Killed between the answers and their step: the next attempt writes them again."""
    events = [
        *begun(),
        rollout(5),
        ev.Start(t=30.0, attempt=2, pid=2, resumed_step=4),
        rollout(5),
        step(5, teacher=0.1),
    ]
    assert folded(events).state.findings.lessons.rollout_tokens == 150


def test_a_job_without_a_teacher_keeps_nothing() -> None:
    lessons = folded([ev.Start(t=1.0, attempt=1, pid=1), step(1), step(2)]).state.findings.lessons
    assert (lessons.losses, lessons.curves, lessons.rollout_tokens_per_second) == ({}, {}, None)
