"""What became of each ability against the parent model: the difference, how sure it is, and the sentence that says so.

Owns the verdicts, their words and the rule of the gate. Must not know models, runs or files.

    lost, gained   the interval leaves zero out and reaches beyond what would matter
    kept           a loss that matters is ruled out, and so is a gain that matters or the interval holds zero
    unclear        it holds zero and reaches beyond what would matter; or too few items to say

The interval holds zero as well where so few items changed that chance may have done it (`engine.evaluation.bootstrap`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.errors import EngineError
from engine.evaluation.bootstrap import FEWEST_PAIRS, Interval, Items, paired_interval
from engine.evaluation.findings import Found, SuiteSums, TaskResult
from engine.evaluation.tasks import DEMO
from engine.jobs.events import RetentionReport
from engine.jobs.spec_suites import RetentionSection

ACCURACY = "accuracy"
BITS_PER_BYTE = "bits per byte"
MATTERS_ACCURACY = 0.02
"""Share of right answers: two points."""
MATTERS_BITS = 0.01
"""Relative: bits per byte that rise by less than 1 % tell no two models apart in use."""
MOST_MEMBERS_SHOWN = 12
"""Of a group: more tasks than this (MMLU has 57) are reported as the group only, and those that were lost
or have a limit."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A limit that a model does not keep."""

    limit: RetentionSection
    words: str


def compare(before: Found, after: Found, always: Collection[str] = ()) -> tuple[RetentionReport, ...]:
    """One report per ability that both were asked about, suites first; a group of tasks before its members. A member
    named in `always`, as those with a limit are, has one however many there are."""
    suites = [
        _suite_report(first, second)
        for first in before.suites
        if (second := after.suite(first.suite)) is not None and len(first.nats) == len(second.nats)
    ]
    tasks = {report.on: report for report in _task_reports(before, after, always)}  # a task may be in groups of groups
    return (*suites, *tasks.values())


def not_compared(before: Found, after: Found) -> tuple[str, ...]:
    """Benchmarks of which no report can speak; of a group that is one, its members are not named."""
    silent = list(_silent(before, after))
    within = {name for task in silent for name in task.members}
    return tuple(task.task for task in silent if task.task not in within)


def broken_limits(reports: Sequence[RetentionReport], limits: Sequence[RetentionSection]) -> tuple[Broken, ...]:
    """Limits that a significant loss exceeds."""
    found = []
    by_name = {report.on: report for report in reports}
    for limit in limits:
        report = by_name.get(limit.on)
        if report is not None and is_significant(report) and (lost := loss_of(report)) > limit.most_lost:
            amount = _points(lost) if report.unit == ACCURACY else f"{lost:.1%} of its bits per byte"
            most = _points(limit.most_lost) if report.unit == ACCURACY else f"{limit.most_lost:.1%}"
            found.append(Broken(limit, f"{report.words}: {amount} lost, {most} allowed"))
    return tuple(found)


def require_names(limited: Sequence[str], measured: Sequence[str]) -> None:
    """Raises EngineError `retention.unknown` for a limit on nothing that is measured."""
    for name in limited:
        if name not in measured:
            raise EngineError(
                "retention.unknown",
                f'[[retention]] on = "{name}" names nothing that is measured.',
                cause=f"Measured are: {', '.join(measured[:20]) or 'nothing'}.",
                next_step="Name one of these, or add it to evaluation.tasks or [[suites]].",
            )


def require_comparable(limited: Sequence[str], before: Found) -> None:
    """Raises EngineError `retention.not_comparable` for a limit on a benchmark whose loss no comparison would show."""
    silent = {task.task: task for task in _silent(before, before)}
    for number, name in enumerate(limited, 1):
        if (task := silent.get(name)) is None and before.knows(name):
            continue
        error = not_comparable(name, [metric.name for metric in task.metrics] if task is not None else [])
        error.key = f"retention[{number}].on"
        raise error


def not_comparable(name: str, metrics: Sequence[str]) -> EngineError:
    """Of a limit on a benchmark that has only these metrics."""
    return EngineError(
        "retention.not_comparable",
        f'[[retention]] on = "{name}" would never be looked at: {name} has no share of right answers.',
        cause=f"It is measured in {', '.join(metrics)}." if metrics else "It has no figure of its own.",
        next_step="Limit a benchmark that has one, or a text of [[suites]].",
    )


def loss_of(report: RetentionReport) -> float:
    """How much was lost in the unit of a limit: accuracy as a fraction, bits per byte relative. Below 0 is a gain."""
    return -report.delta if report.unit == ACCURACY else report.delta / max(report.before, 1e-12)


def is_significant(report: RetentionReport) -> bool:
    """Whether chance alone would hardly do it."""
    return Interval(report.delta, report.low, report.high, report.pairs).significant


# ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _suite_report(before: SuiteSums, after: SuiteSums) -> RetentionReport:
    return _report(before.suite, BITS_PER_BYTE, _items_of(before), _items_of(after))


def _items_of(sums: SuiteSums) -> Items:
    return Items(sums.nats, [math.log(2) * size for size in sums.text_bytes])


def _task_reports(before: Found, after: Found, always: Collection[str]) -> Iterator[RetentionReport]:
    grouped = {name for task in before.tasks for name in task.members}
    for group in (task for task in before.tasks if task.members):
        pairs = [_answers(before, after, name) for name in group.members]
        whole = _report_of(group.task, [pair for one in pairs for pair in one.values()])
        several = len(group.members)
        members = [
            _report_of(name, list(one.values()), several) for name, one in zip(group.members, pairs, strict=True)
        ]
        if len(members) > MOST_MEMBERS_SHOWN:
            members = [one for one in members if one and (one.verdict == "lost" or one.on in always)]
        yield from (report for report in (whole, *members) if report is not None)
    for task in before.tasks:
        if not task.members and task.task not in grouped:
            report = _report_of(task.task, list(_answers(before, after, task.task).values()))
            if report is not None:
                yield report


def _silent(before: Found, after: Found) -> Iterator[TaskResult]:
    """Tasks and groups without a question that both answered right or wrong."""
    for task in before.tasks:
        if not any(_answers(before, after, name) for name in task.members or (task.task,)):
            yield task


def _answers(before: Found, after: Found, name: str) -> Mapping[int, tuple[float, float]]:
    """Question -> both answers, of the questions that both were asked."""
    first, second = before.task(name), after.task(name)
    if first is None or second is None or first.main != second.main:
        return {}
    return {
        number: (first.answers[number], second.answers[number])
        for number in sorted(first.answers)
        if number in second.answers
    }


def _report_of(name: str, pairs: Sequence[tuple[float, float]], comparisons: int = 1) -> RetentionReport | None:
    if not pairs:
        return None
    ones = [1.0] * len(pairs)
    before, after = (Items([pair[side] for pair in pairs], ones) for side in (0, 1))
    return _report(name, ACCURACY, before, after, comparisons)


def _report(on: str, unit: str, before: Items, after: Items, comparisons: int = 1) -> RetentionReport:
    found = paired_interval(before, after, comparisons=comparisons)
    first, second = before.figure, after.figure
    better = 1.0 if unit == ACCURACY else -1.0
    matters = MATTERS_ACCURACY if unit == ACCURACY else MATTERS_BITS * first
    verdict = verdict_of(found, better, matters)
    return RetentionReport(
        on=on,
        unit=unit,
        before=first,
        after=second,
        delta=found.delta,
        low=found.low,
        high=found.high,
        pairs=found.pairs,
        verdict=verdict,
        words=_words(on, unit, (first, second), found, verdict),
    )


def verdict_of(found: Interval, better: float, matters: float) -> str:
    """`better` is 1 where more is better, -1 where less is; `matters` is in the unit of the interval."""
    if found.pairs < FEWEST_PAIRS:
        return "kept" if found.low == found.high == 0 and found.pairs else "unclear"
    worst, best = sorted((better * found.low, better * found.high))
    if worst >= -matters and (best <= matters or worst <= 0):
        return "kept"
    if best < 0:
        return "lost"
    return "gained" if worst > 0 else "unclear"


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _words(on: str, unit: str, figures: tuple[float, float], found: Interval, verdict: str) -> str:
    """ "arithmetic fell from 91 % to 78 %, significant"."""
    name = on.removeprefix(f"{DEMO}_").replace("_", " ")
    shown = _both(figures, unit)
    if found.delta == 0 or shown[0] == shown[1]:
        moved = f"{name} stayed at {shown[1]}"
    else:
        moved = f"{name} {'rose' if found.delta > 0 else 'fell'} from {shown[0]} to {shown[1]}"
    unit_words = "" if unit == ACCURACY else " bits per byte"
    return f"{moved}{unit_words}, {_how_sure(found, verdict)}" if found.delta else f"{moved}{unit_words}"


def _how_sure(found: Interval, verdict: str) -> str:
    if found.pairs < FEWEST_PAIRS:
        return f"too few items to tell ({found.pairs})"
    if not found.significant:
        return "not significant" if verdict == "kept" else "not significant, and more items would be needed to tell"
    return "significant" if verdict != "kept" else "significant but too little to matter"


def _both(figures: tuple[float, float], unit: str) -> tuple[str, str]:
    """Both figures, with one more place than usual where that tells them apart."""
    places = 0 if unit == ACCURACY else 3
    for shown in (places, places + 1):
        first, second = (f"{100 * v:.{shown}f} %" if unit == ACCURACY else f"{v:.{shown}f}" for v in figures)
        if first != second:
            return first, second
    value = figures[1]
    same = f"{100 * value:.{places}f} %" if unit == ACCURACY else f"{value:.{places}f}"
    return same, same


def _points(share: float) -> str:
    return f"{100 * share:.3g} points"
