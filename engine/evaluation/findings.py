"""What a model was found to be able to do at one step: suites and benchmarks, as they are kept between attempts.

Owns the kept form and its parts of the journal and the card. Must not know how anything is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.evaluation.benchmarks import TaskResult
from engine.evaluation.suites import SuiteSums
from engine.jobs import card
from engine.jobs import events as ev


@dataclass(frozen=True, slots=True)
class Found:
    """One model, measured."""

    suites: tuple[SuiteSums, ...] = ()
    tasks: tuple[TaskResult, ...] = ()

    def suite(self, name: str) -> SuiteSums | None:
        return next((one for one in self.suites if one.suite == name), None)

    def task(self, name: str) -> TaskResult | None:
        return next((one for one in self.tasks if one.task == name), None)


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
