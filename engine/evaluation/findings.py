"""What a model was found to be able to do at one step: suites and benchmarks, as they are kept between attempts.

Owns the kept form, per document and per question, and its parts of the journal and the card. Must not know how anything
is measured, nor import torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from engine.jobs import card
from engine.jobs import events as ev


@dataclass(frozen=True, slots=True)
class SuiteText:
    """The documents of one suite, the same for every model that is compared."""

    name: str
    documents: tuple[str, ...]


class SuiteSums(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one suite: sums per document, in the order of the documents."""

    suite: str
    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    text_bytes: tuple[int, ...]

    @property
    def nats_per_token(self) -> float:
        return sum(self.nats) / max(sum(self.tokens), 1)

    @property
    def bits_per_byte(self) -> float:
        return sum(self.nats) / (math.log(2) * max(sum(self.text_bytes), 1))


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one task."""

    name: str
    """As lm-eval names it, with its filter where it has one: "acc", "exact_match,strict-match"."""
    value: float
    standard_error: float | None
    higher_is_better: bool | None = None
    """As lm-eval says of it; None where it does not."""


class TaskResult(msgspec.Struct, frozen=True, kw_only=True):
    """One task, or a group with its mean."""

    task: str
    questions: int
    metrics: tuple[Metric, ...]
    members: tuple[str, ...] = ()
    """Of a group: its single tasks."""
    main: str = ""
    """The metric that speaks for the task; "" where none is a share of right answers."""
    answers: dict[int, float] = {}
    """Question number -> its part of `main`, 0 to 1; kept so that two models can be paired. Empty for groups."""


@dataclass(frozen=True, slots=True)
class Found:
    """One model, measured."""

    suites: tuple[SuiteSums, ...] = ()
    tasks: tuple[TaskResult, ...] = ()

    def suite(self, name: str) -> SuiteSums | None:
        return next((one for one in self.suites if one.suite == name), None)

    def task(self, name: str) -> TaskResult | None:
        return next((one for one in self.tasks if one.task == name), None)

    def knows(self, name: str) -> bool:
        """Whether a suite or a task of that name was measured."""
        return self.suite(name) is not None or self.task(name) is not None


def suite_event(step: int, sums: SuiteSums, seconds: float, now: float) -> ev.SuiteScore:
    """For the journal."""
    return ev.SuiteScore(
        t=now,
        step=step,
        suite=sums.suite,
        nats_per_token=sums.nats_per_token,
        bits_per_byte=sums.bits_per_byte,
        tokens=sum(sums.tokens),
        text_bytes=sum(sums.text_bytes),
        seconds=seconds,
    )


def task_events(step: int, result: TaskResult, part: bool, seconds: float, now: float) -> list[ev.BenchmarkScore]:
    """One per metric, for the journal."""
    return [
        ev.BenchmarkScore(
            t=now,
            step=step,
            task=result.task,
            metric=metric.name,
            value=metric.value,
            standard_error=metric.standard_error,
            questions=result.questions,
            part=part,
            seconds=seconds,
            higher_is_better=metric.higher_is_better,
            main=metric.name == result.main,
        )
        for metric in result.metrics
    ]


def card_suites(found: Found) -> tuple[card.SuiteResult, ...]:
    """For the card."""
    return tuple(
        card.SuiteResult(
            name=sums.suite,
            nats_per_token=sums.nats_per_token,
            bits_per_byte=sums.bits_per_byte,
            tokens=sum(sums.tokens),
            text_bytes=sum(sums.text_bytes),
            documents=len(sums.nats),
        )
        for sums in found.suites
    )


def card_benchmarks(found: Found) -> tuple[card.BenchmarkResult, ...]:
    """For the card: every metric of every task."""
    return tuple(
        card.BenchmarkResult(
            task=result.task,
            metric=metric.name,
            value=metric.value,
            standard_error=metric.standard_error,
            questions=result.questions,
            group=bool(result.members),
        )
        for result in found.tasks
        for metric in result.metrics
    )
