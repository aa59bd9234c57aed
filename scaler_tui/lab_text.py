"""A lab on a terminal of 80 columns: its report, and what it will take, in wrapped lines.

Owns these lines. Must not know how arms are sized or judged; pages and Markdown are `engine.lab`'s.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from engine.units import format_count, format_duration

if TYPE_CHECKING:
    from engine.lab.report import ArmRow, Report
    from engine.lab.verdicts import Verdict

WIDTH = 80
NAME_CELLS = 24


def report_lines(report: Report) -> Iterator[str]:
    """Answers first, then what every arm is and cost, then how it was done."""
    yield from wrapped(report.title)
    if report.question:
        yield from wrapped(report.question)
    yield from wrapped(f"{report.finished} of {report.total} runs finished; begun {report.day}, on {report.machine}.")
    for verdict in report.verdicts:
        yield ""
        yield from _goal(verdict)
    yield ""
    yield "The arms, per run:"
    for arm in report.arms:
        yield from _arm(arm)
    for text in (report.how, report.method, *report.notes):
        yield ""
        yield from wrapped(text)


def _goal(verdict: Verdict) -> Iterator[str]:
    from engine.lab.report_markdown import figure_words

    yield from wrapped(f"{verdict.goal}: {verdict.words}", "", "  ")
    yield from wrapped(f"{verdict.label}, {'more' if verdict.higher_is_better else 'less'} is better", "  ", "    ")
    for figure in verdict.arms:
        won = "  won" if figure.arm == verdict.winner else ""
        name = in_cells(figure.arm)
        yield from (f"    {line}" for line in name[:-1])
        yield f"    {name[-1]:<{NAME_CELLS}}  {figure_words(verdict, figure)}{won}"


def _arm(arm: ArmRow) -> Iterator[str]:
    from engine.lab.figures import written

    parts = [
        arm.task if arm.start == "model" else f"{arm.task}, from random weights",
        f"{format_count(arm.parameters)} parameters, {format_count(arm.trainable_parameters)} trained",
        f"{arm.steps:,} steps, {arm.tokens:,.0f} tokens, {written(arm.flops, 'flops')} FLOPs",
    ]
    if arm.training_seconds is not None and arm.hours is not None:
        parts.append(
            f"{format_duration(arm.training_seconds)} of training in {format_duration(arm.hours * 3600)} of work"
        )
    if arm.usd is not None:
        parts.append(written(arm.usd, "usd"))
    yield from wrapped(f"{arm.name}: {'; '.join(parts)}", "  ", "    ")


def in_cells(name: str) -> list[str]:
    """An arm's name in lines of NAME_CELLS."""
    return textwrap.wrap(name, NAME_CELLS) or [""]


def with_long_names(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Rows of a table whose first cell is an arm's name; a long one goes on in rows of its own."""
    found = []
    for name, *cells in rows:
        first, *more = in_cells(name)
        found += [[first, *cells], *([line, *[""] * len(cells)] for line in more)]
    return found


def wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    """Lines of at most WIDTH."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
